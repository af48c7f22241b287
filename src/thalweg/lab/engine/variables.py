"""What variables of the environment may decide about a run: nothing that neither its spec nor its hash says.

Accelerate and torch read settings from the environment. Those that contradict what a run is are refused
(:func:`check`); those that alter the precision of arithmetic count in the run's hash (:func:`arithmetic`); those that
change no more than rounding or speed, as the number of threads, are in its ``environment.json``.
"""

from __future__ import annotations

import os

import torch

from thalweg.records.errors import UserError

OFF = ("", "0", "false", "no", "n", "f", "off")
LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Of which Accelerate makes one run of several processes, on a CPU alone."""
ARITHMETIC = {
    "NVIDIA_TF32_OVERRIDE": (),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("0",),
    "ONEDNN_DEFAULT_FPMATH_MODE": ("STRICT",),
    "DNNL_DEFAULT_FPMATH_MODE": ("STRICT",),
}
"""What makes products of float32 matrices coarser or finer than torch has them, and the values that do not."""


def check(precision: str) -> None:
    """Refuse what the environment asks of Accelerate and a run of this precision would not do.

    Raises:
        UserError: a variable contradicts the spec; its name, its value, and the option to take instead.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = "cpu" if here is None else here.type
    shards = OFF, "--sharding fsdp2 shards a run"
    launches = "torchrun or accelerate launch starts several processes of one run"
    allowed = {  # values, in small letters and up to a colon, and what to take instead of others
        "ACCELERATE_USE_DEEPSPEED": shards,
        "ACCELERATE_USE_FSDP": shards,
        "ACCELERATE_USE_MEGATRON_LM": shards,
        "ACCELERATE_USE_PARALLELISM_CONFIG": shards,
        "ACCELERATE_USE_SAGEMAKER": (OFF, launches),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("", "1"), "--micro-batch accumulates gradients"),
        "ACCELERATE_MIXED_PRECISION": (
            ("", "no", precision),
            f"--precision sets the precision of a run, here {precision}",
        ),
        "ACCELERATE_DYNAMO_BACKEND": (("", "no"), "--compile compiles a run's model"),
        # TE's layers are put in whatever the precision
        "ACCELERATE_FP8_BACKEND": (("", "no"), "--precision is no, bf16 or fp16"),
        "ACCELERATE_TORCH_DEVICE": (("", kind), f"a run uses the {kind} device of this machine"),
    }
    if kind != "cpu":
        hide = f"a run is on the {kind} device unless it is hidden, as by CUDA_VISIBLE_DEVICES=''"
        allowed["ACCELERATE_USE_CPU"] = OFF, hide
    elif "WORLD_SIZE" not in os.environ:
        allowed |= dict.fromkeys(LAUNCHERS, (("", "1"), launches))
    for name, (values, instead) in allowed.items():
        if os.environ.get(name, "").strip().lower().partition(":")[0] not in values:
            raise UserError(f"{name}={os.environ[name]} is set in the environment: unset it; {instead}")


def arithmetic() -> str:
    """The variables that alter the precision of arithmetic, as far as they are set; "" where none is."""
    found = {name: os.environ.get(name, "") for name in ARITHMETIC}
    return " ".join(f"{name}={value}" for name, value in found.items() if value not in ("", *ARITHMETIC[name]))
