"""The paper scale of every recipe with its tasks shrunk: all tables, two steps each, six examples a step."""

from dataclasses import replace

from shrunk_tasks import SHRUNK

from thalweg.studies import recipe


def shrunk(name):
    """The recipe of this name, on one process or on as many as a launcher starts, sharded."""
    found = recipe.find(name)
    paper = found.scales["paper"]
    tables = {}
    for one in paper.comparisons:
        optimizer = one.optimizers[-1 if len(tables) % 2 == 0 else 0].split("|")[0]  # the last, the first, the last...
        if one.task in SHRUNK and (one.task, one.regimen.get("schedule")) not in tables:
            tables[one.task, one.regimen.get("schedule")] = replace(
                one, task=SHRUNK[one.task], batch_size=6, epochs=None, steps=2, seeds=1, trials=1,
                tuning_seeds=1,
                optimizers=(_one_value(optimizer),), micro_batch=None,
                sharding="fsdp2" if one.sharding == "ddp" else one.sharding, mesh={}, reshard="each",
                regimen={**one.regimen, "precision": "no", "evaluations": 2},
            )  # fmt: skip
    return replace(found, scales={"paper": replace(paper, comparisons=tuple(tables.values()))})


def _one_value(optimizer):
    return ":".join(pair.split("|")[0] for pair in optimizer.split(":"))


def names():
    """The recipes whose paper scale trains on published data."""
    return [
        name
        for name in recipe.names()
        if any(one.task in SHRUNK for one in recipe.find(name).scales["paper"].comparisons)
    ]
