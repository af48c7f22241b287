"""Recipes small enough for a test: their options, and the modules that carry them out."""

import json

from thalweg.studies.measurements import convergence, edge, flatness, sine, valleys

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
        "batches": [[256, 0.01, 40], [32768, 0.01, 40]], "settings": PAIRS, "target": 0.5, "seeds": 2, "points": 3,
        "extent": 1.0, "jobs": 1,
    },
    valleys: {
        "functions": ["curved"], "settings": [[0, 0], [-1, 0.5], [1, 0.5]], "factors": [0.3, 1.0], "steps": 12,
        "walkers": 3, "noise": 0.3, "jobs": 1,
    },
}  # fmt: skip


def stored(folder):
    """The records as plain JSON, by name."""
    return {path.stem: json.loads(path.read_text()) for path in (folder / "records").glob("*.json")}
