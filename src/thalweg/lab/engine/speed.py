"""How fast a run trains and how much memory it takes: measured, and so never the same twice."""

from __future__ import annotations

import sys
from typing import Any

import torch


def rates(examples: float, seconds: float, tokens: int | None, operations: float | None) -> dict[str, float]:
    """Examples, and where an example's tokens and operations are known these too, a second of training."""
    if seconds <= 0.0:
        return {}
    each = {"examples_per_second": 1, "tokens_per_second": tokens, "flops_per_second": operations}
    return {name: count * examples / seconds for name, count in each.items() if count is not None}


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes that this process has had: of tensors on an accelerator, of everything (RSS) without one."""
    if device.type != "cpu":
        return {"peak_memory": torch.accelerator.max_memory_allocated(device)}
    try:
        import resource
    except ImportError:  # on Windows
        return {}
    found: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory": found if sys.platform == "darwin" else 1024 * found}


def device_memory() -> int | None:
    """The bytes that an accelerator of this machine has; None where there is none."""
    return torch.accelerator.get_memory_info(0)[1] if torch.accelerator.is_available() else None
