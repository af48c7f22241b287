"""A model's weights as one safetensors file: what a run leaves on request, and what a run starts from."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from thalweg.files import write_bytes
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

SHOWN = 3  # names in an error
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def gathered(model: nn.Module, *, sharded: bool) -> dict[str, Tensor]:
    """The whole state dict; of shards on rank 0, empty elsewhere (all ranks must call)."""
    state: dict[str, Any] = get_model_state_dict(model, options=WHOLE) if sharded else model.state_dict()
    return state


def save(path: Path, state: dict[str, Any], tied: dict[str, str], run: str) -> None:
    """Write a file that transformers and safetensors read, whole or not at all.

    Args:
        path: of the file.
        state: a state dict.
        tied: names that are left out, each with that of the same tensor (:func:`tied_names`), as safetensors does it.
        run: the hash of the run, kept in the file's metadata.

    Raises:
        UserError: an entry is no dense tensor.
        OSError: the file cannot be written.
    """
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise UserError(
                f"--save-model: {name!r} of the model's state dict is not a dense tensor, got {value!r:.60}"
            )
    kept = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items() if name not in tied
    }  # copies, as safetensors takes no views of one storage
    write_bytes(path, safetensors.save(kept, {"format": "pt", "run": run, **tied}))


def tied_names(model: nn.Module) -> dict[str, str]:
    """Of parameters and buffers with several names, all names but the first, each with the first."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    pairs = [(name, first.setdefault(id(value), name)) for name, value in named]
    return {name: other for name, other in pairs if name != other}


def run_of(path: Path) -> str | None:
    """The hash of the run that left this file, or None: there is none, or it is not of a run."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("run")
    except (OSError, SafetensorError):
        return None


def hash_of(path: Path) -> str:
    """12 hexadecimal digits of SHA-256 over the file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        status = path.stat()
        return _hash(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise UserError(f"--init-from: cannot read {path} ({error.strerror or error})") from None


@cache
def _hash(path: Path, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:12]


def load(path: Path, model: nn.Module, *, sharded: bool) -> None:
    """Fill a model, or one of shards, from a file; numbers are cast to the model's dtypes.

    Raises:
        UserError: the file cannot be read, or names or shapes are not the model's.
    """
    try:
        found: dict[str, Tensor] = safetensors.load_file(path)
    except OSError as error:
        raise UserError(f"--init-from: cannot read {path} ({error.strerror or error})") from None
    except SafetensorError as error:
        raise UserError(f"--init-from: {path} is not a safetensors file ({error})") from None
    tied = tied_names(model)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    for name, other in {**tied, **{other: name for name, other in tied.items()}}.items():
        if name in own and name not in found and other in found:
            found[name] = found[other]
    theirs, ours = ({name: list(value.shape) for name, value in state.items()} for state in (found, own))
    if misfits := [
        f"{name} ({theirs.get(name, 'nothing')}, not {ours.get(name, 'nothing')})"
        for name in dict.fromkeys([*ours, *theirs])
        if theirs.get(name) != ours.get(name)
    ]:
        more = f" and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else ""
        raise UserError(f"--init-from: {path} does not fit the task's model: {', '.join(misfits[:SHOWN])}{more}")
    if sharded:
        set_model_state_dict(model, dict(found), options=WHOLE)
    else:
        model.load_state_dict(found, strict=False)  # checked above; what is no tensor stays
