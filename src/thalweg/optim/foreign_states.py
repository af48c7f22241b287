"""State dicts of other libraries' LAMBs, which must not be taken for ours: names are alike, meanings are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thalweg.arguments import reject

# Options by which groups are known. DeepSpeed's Adam has colossalai's too, and amsgrad.
_GROUP_MARKS = {
    "timm": ("always_adapt",),
    "pytorch_optimizer": ("weight_decouple", "adam"),
    "deepspeed": ("max_coeff",),
    "bitsandbytes": ("t_alpha",),
    "apex": ("grad_averaging", "bias_correction"),
    "colossalai": ("bias_correction",),
}
_STATE_MARKS = {"torch_optimizer": ("weight_norm", "adam_norm")}  # and pytorch_lamb
_ALIKE = {
    "colossalai": "; if it is of HybridAdam or another Adam there, delete 'bias_correction' from its groups and load "
    "it as an AdamW's, into an optimizer with the same bias_correction"
}
_OURS, _ADAMS = "trust_eps", "amsgrad"


def library_of(state_dict: Mapping[str, Any]) -> str | None:
    """The library whose LAMB a state dict looks like; None if it may be ours, or an Adam's."""
    groups = state_dict["param_groups"]
    states = [state for state in state_dict["state"].values() if isinstance(state, Mapping)]
    if any(_OURS in group or _ADAMS in group for group in groups):
        return None
    marks = [(library, names, groups) for library, names in _GROUP_MARKS.items()]
    marks += [(library, names, states) for library, names in _STATE_MARKS.items()]
    for library, names, places in marks:
        if any(place.keys() >= set(names) for place in places):
            return library
    return None


def refuse_other_lambs(state_dict: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for the state dict of another library's LAMB."""
    if library := library_of(state_dict):
        reject(
            "state_dict",
            f"one with the names of {library}'s LAMB",
            "that of an ALTO, a Lamb or an AdamW, or what thalweg.lamb_state makes of another LAMB's, as in "
            f'optimizer.load_state_dict(thalweg.lamb_state("{library}", state_dict, optimizer))'
            f"{_ALIKE.get(library, '')}",
        )


def refuse_state_of_none(state: Mapping[Any, Any]) -> None:
    """Raise ``ValueError`` for loaded state that belongs to no parameter, which torch would leave aside."""
    if unknown := [key for key in state if not isinstance(key, Tensor)]:
        reject(
            "state",
            unknown,
            "under the keys that 'params' of the groups have, as state under others would be left aside "
            "(of another LAMB, thalweg.lamb_state makes such a dictionary)",
        )
