"""Models without memory, as the plan of a step wants them: their parameters' shapes, and what is done with each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from thalweg import param_groups
from thalweg.arguments import did_you_mean
from thalweg.lab import tasks
from thalweg.lab.contenders.matrices import hidden_layers
from thalweg.records.errors import TaskFault, UserError
from thalweg.sharding.plan import Parameter

MODELS = {"bert-base": "imdb-bert", "resnet-50": "imagenet-resnet50", "gpt2-medium": "gpt2-345m"}
"""The field's names of models, and a task that has each: BERT-base is there with a head of two classes."""


def find(name: str) -> list[Parameter]:
    """The parameters of a :func:`model`."""
    return parameters(model(name))


def model(name: str) -> nn.Module:
    """A task's model, or the one that a file of Hugging Face's describes.

    Args:
        name: a task (``thalweg tasks``), one of ``MODELS``, or ``module:Class``; or the path of a ``config.json``, or
            of its folder.

    Raises:
        UserError: there is no such task or file, or it describes no model.
        TaskFault: the task's code raises.
    """
    name = MODELS.get(name, name)
    if name in tasks.TASKS:
        return _of_task(name)
    if Path(name).exists():
        return _of_config(Path(name))
    if "/" in name or name.endswith(".json"):
        raise UserError(f"MODEL must be a task or the path of a config.json, got {name!r}, where there is no file")
    if ":" not in name:
        names = *MODELS, *tasks.TASKS
        known = f"{', '.join(names)}, module:Class or the path of a config.json"
        raise UserError(f"MODEL must be one of {known}, got {name!r}{did_you_mean(name, names)}")
    return _of_task(name)


def of_task(name: str) -> list[Parameter]:
    """The parameters of a task's model."""
    return parameters(_of_task(name))


def _of_task(name: str) -> nn.Module:
    """A task's model.

    Raises:
        UserError: there is no such task.
        TaskFault: the task's code raises.
    """
    task = tasks.find(name)
    try:
        with torch.device("meta"):
            return task.skeleton()
    except UserError:
        raise
    except Exception as error:
        raise TaskFault(name, "skeleton()") from error


def parameters(model: nn.Module) -> list[Parameter]:
    """The parameters of a model as ALTO and Lamb take them, in its order."""
    hidden = {id(p) for p in hidden_layers(model).matrices}
    found = {}
    for group in param_groups(model):
        for p in group["params"]:
            adapted, stacked = group["trust_ratio"], "norm_dims" in group
            of_muon = id(p) in hidden or (stacked and adapted)
            found[id(p)] = Parameter(tuple(p.shape), adapted, stacked, of_muon)
    return [found[id(p)] for p in model.parameters()]


def _of_config(path: Path) -> nn.Module:
    """The model that transformers builds of a file, without weights."""
    import transformers

    file = path / "config.json" if path.is_dir() else path
    try:
        config: Any = transformers.AutoConfig.from_pretrained(str(file), trust_remote_code=False)
        named = [getattr(transformers, name, None) for name in config.architectures or ()]
        build: Any = named[0] if named and named[0] else transformers.AutoModel.from_config
        with torch.device("meta"):
            made: nn.Module = build(config)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"cannot build a model from {file} ({type(error).__name__}: {said})") from None
    return made
