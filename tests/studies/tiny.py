"""Recipes small enough for a test: their options, and the modules that carry them out."""

import json

from thalweg.studies.measurements import convergence, edge, flatness, sine, two_mechanisms, valleys, which_alpha
from thalweg.studies.pages.settings import name_of

PAIRS = [[0, 0], [-0.4, 0.5]]
OPTIONS = {
    edge: {
        "lr": {"gd": [0.2], "momentum": [1.0], "adam": [0.001], "lamb": [0.01]}, "full": PAIRS, "batch": PAIRS,
        "examples": 40, "batch_size": 20, "steps": 6, "last": 4, "every": 2, "seeds": 2, "jobs": 1,
    },
    convergence: {
        "settings": PAIRS, "seeds": 3, "ridge": 1e-3, "batch_size": 399, "convex_steps": 12,
        "eta": {"adam": [0.01, 0.1], "lamb": [0.1]}, "steps": 12, "width": 4, "network_ridge": [0],
        "constant": {"adam": 0.01, "lamb": 0.01},
        "decaying": {"adam": 0.1, "lamb": 0.1}, "jobs": 1,
    },
    flatness: {
        "seeds": 2, "jobs": 1,
        "digits": {
            "settings": [[0, 0], [-0.4, 0.5], [0.5, 0.01]], "bases": {"gd": [3, 0.3], "lamb": [0.1, 0.03]},
            "target": 2.0, "batch": 32, "examples": 100, "steps": 60,
        },
    },
    sine: {
        "batches": [[256, 0.01, 40], [2048, 0.01, 40]], "settings": PAIRS, "target": 0.5, "seeds": 2, "points": 3,
        "extent": 1.0, "jobs": 1,
    },
    valleys: {
        "functions": ["curved"], "settings": [[0, 0], [-1, 0.5], [1, 0.5]], "factors": [0.3, 1.0], "steps": 12,
        "walkers": 3, "noise": 0.3, "jobs": 1,
    },
    two_mechanisms: {
        "grids": [
            {"base": "gd", "lr": 0.1, "settings": [[0, 0], [-5, 0.9], [4, 0.9], [0.5, 0]]},
            {"base": "momentum", "lr": 0.3, "settings": [[0, 0], [-5, 0.99]]},
            {"base": "gd", "lr": 2.0, "settings": [[0, 0], [-1, 0.5]]},
        ],
        "task": "digits", "examples": 60, "width": 8, "levels": [2.2, 1.9], "steps": 200, "seeds": 3, "jobs": 1,
    },
    which_alpha: {
        "task": "digits", "examples": 256, "width": 8, "seeds": 3, "settings": [[0, 0], [-3, 0.75], [0.5, 0.01]],
        "lr": {"gd": 0.3, "rmsprop": 0.001, "adagrad": 0.01, "lamb": 0.01, "spsa": 0.003}, "jobs": 1,
        "regimes": {
            "large": {"batch": 64, "steps": 12, "bases": ["gd", "rmsprop", "adagrad", "lamb"]},
            "blind": {"batch": 32, "steps": 5, "bases": ["spsa"]},
        },
    },
}  # fmt: skip


def stored(folder):
    """The records as plain JSON, by name."""
    return {path.stem: json.loads(path.read_text()) for path in (folder / "records").glob("*.json")}


def write(folder, wanted):
    """Records made by hand."""
    names = [name_of(settings) for settings, _ in wanted]
    (folder / "records").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"records": names}))
    for name, (settings, found) in zip(names, wanted, strict=True):
        (folder / "records" / f"{name}.json").write_text(
            json.dumps({"settings": settings, "found": found, "seconds": 1.0})
        )
