"""What variables of the environment may decide about a run: nothing that neither its spec nor its hash says.

Accelerate and torch read settings from the environment. Those that contradict what a run is are refused
(:func:`check`); those that alter the precision of arithmetic count in the run's hash (:func:`arithmetic`); those that
change no more than rounding or speed, as the number of threads, are in its ``environment.json``.
"""

from __future__ import annotations

import os

import torch

from thalweg.records.errors import UserError

TRUE = ("1", "true", "yes", "y", "t", "on")
SWITCHES = {
    "ACCELERATE_USE_DEEPSPEED": "--sharding fsdp2 shards a run",
    "ACCELERATE_USE_FSDP": "--sharding fsdp2 shards a run",
    "ACCELERATE_USE_MEGATRON_LM": "--sharding fsdp2 shards a run",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "--sharding fsdp2 shards a run",
    "ACCELERATE_USE_SAGEMAKER": "torchrun or accelerate launch starts several processes",
}
"""What Accelerate would do in another way than the lab does, where it is true; and the lab's own way."""
LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
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

    def refuse(name: str, instead: str) -> None:
        raise UserError(f"{name}={os.environ[name]} is set in the environment: unset it; {instead}")

    def value(name: str) -> str:
        return os.environ.get(name, "").strip().lower()

    for name, instead in SWITCHES.items():
        if value(name) in TRUE:
            refuse(name, instead)
    if value("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") not in ("", "1"):
        refuse("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "--micro-batch accumulates gradients")
    if value("ACCELERATE_MIXED_PRECISION") not in ("", "no", precision):
        refuse("ACCELERATE_MIXED_PRECISION", f"--precision sets the precision of a run, here {precision}")
    if value("ACCELERATE_DYNAMO_BACKEND") not in ("", "no"):
        refuse("ACCELERATE_DYNAMO_BACKEND", "the lab compiles no models")
    if value("ACCELERATE_FP8_BACKEND") not in ("", "no"):  # TE's layers are put in whatever the precision
        refuse("ACCELERATE_FP8_BACKEND", "--precision is no, bf16 or fp16")
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = "cpu" if here is None else here.type
    if value("ACCELERATE_USE_CPU") in TRUE and kind != "cpu":
        refuse(
            "ACCELERATE_USE_CPU", f"a run is on the {kind} device unless it is hidden, as by CUDA_VISIBLE_DEVICES=''"
        )
    for name in LAUNCHERS:  # of which Accelerate makes one run of several processes, on a CPU alone
        if kind == "cpu" and "WORLD_SIZE" not in os.environ and value(name) not in ("", "1"):
            refuse(name, "torchrun or accelerate launch starts several processes of one run")
    if value("ACCELERATE_TORCH_DEVICE").partition(":")[0] not in ("", kind):
        refuse("ACCELERATE_TORCH_DEVICE", f"a run uses the {kind} device of this machine")


def arithmetic() -> str:
    """The variables that alter the precision of arithmetic, as far as they are set; "" where none is."""
    found = {name: os.environ.get(name, "") for name in ARITHMETIC}
    return " ".join(f"{name}={value}" for name, value in found.items() if value not in ("", *ARITHMETIC[name]))
