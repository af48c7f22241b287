"""Work for the processes of tests, in a module that imports nothing."""

import time
from pathlib import Path


def count(settings):
    """Leave a mark each time."""
    with Path(settings["marks"]).open("a") as file:
        file.write(f"{settings['n']}\n")
    return {"square": settings["n"] ** 2}


def slow(settings):
    """The first two end soon, others not."""
    time.sleep(0.3 if settings["n"] < 2 else 600.0)
    return {"square": settings["n"] ** 2}
