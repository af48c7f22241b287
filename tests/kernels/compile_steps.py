"""Steps of every kind, compiled for a GPU that need not be there; a process of its own, without the interpreter.

Everything but the GPU's driver is real: ``step`` launches, Triton binds the arguments, compiles, and assembles with
ptxas. The driver that it is given launches nothing. Printed is a line of JSON for each kernel: its name, the step that
it is of, what it was compiled for, what ``cuobjdump`` says of the machine code, and how wide its loads and stores are.

    python compile_steps.py CAPABILITY [DTYPES ...]
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton as triton_package
from kernel_layers import HYPER, TENSORS, in_8_bits, make_layers
from support import pairwise
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from thalweg.kernels import Scales, triton
from thalweg.kernels.addresses import with_memory
from thalweg.kernels.pieces import Scratch

f64, f32, f16, bf16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = {  # of parameter, gradient, m, v, b
    "float32": (f32, f32, f32, f32, f32),
    "float64": (f64, f64, f64, f64, f64),
    "bfloat16": (bf16, bf16, f32, f32, f32),
    "float16 gradients": (f32, f16, f32, f32, f32),
    "bfloat16 state": (f32, f32, bf16, bf16, bf16),
    "all bfloat16": (bf16, bf16, bf16, bf16, bf16),
    "float64, float32 state": (f64, f64, f32, f32, f32),
    "mixed state": (f32, bf16, bf16, f32, f16),
    "8-bit state": (f32, f32, "8bit", "8bit", "8bit"),
    "8-bit and mixed state": (bf16, bf16, "8bit", f32, bf16),
}
CUOBJDUMP = Path(triton_package.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Driver:
    """What Triton asks of a driver."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self
        self.loaded: list[tuple[str, bytes]] = []
        self.launched: list[str] = []

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 100 << 10}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[object, ...]:
        self.loaded.append((name, binary))
        return object(), len(self.loaded), 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(*args: object) -> None:
            self.launched.append(metadata.name)

        return launch


def resources(binary: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL, ... of a kernel's machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", said)}


def widths(ptx: str) -> dict[str, int]:
    """How often each width in bits is loaded and stored, such as {"ld 128": 4}."""
    found: Counter[str] = Counter()
    for kind, vector, bits in re.findall(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.[a-z](\d+)", ptx):
        found[f"{kind} {int(vector or 1) * int(bits)}"] += 1
    return dict(found)


def cases(names: list[str], capability: int):
    """Some in which any two values meet, other ones for each GPU."""
    first = capability != 80
    rows = list(itertools.product(names, *[(first, not first)] * 4))
    for name, *options in pairwise(rows):
        yield name, dict(zip(("explore", "trust_ratio", "on_device", "aligned"), options, strict=True))


def take_step(name: str, explore: bool, trust_ratio: bool, on_device: bool, aligned: bool, number: int = 3) -> None:
    """With steps, skips, clipping and learning rate in tensors if ``on_device``, else in numbers.

    ``number`` is that of steps, the seed, the learning rate and the weight decay.
    """
    param, grad, m, v, b = DTYPES[name]
    stored = dict(zip(TENSORS[2:], (m, v, b), strict=True)) if explore else {"exp_avg": m, "exp_avg_sq": v}
    in_few = [name for name, dtype in stored.items() if dtype == "8bit"]
    layers = make_layers(
        [(17, 256), (32, 128)] if in_few else [(40,), (8, 16)],
        param,
        grad,
        explore=explore,
        steps=(torch.tensor(float(number)),) if on_device else (float(number),),
    )
    layers = [
        layer._replace(
            **{k: getattr(layer, k).to(dtype) for k, dtype in stored.items() if k not in in_few}, seed=number
        )
        for layer in layers
    ]
    if not aligned:
        layers = [
            layer._replace(
                **{
                    k: torch.cat((t.flatten()[:1], t.flatten()))[1:]
                    for k in TENSORS
                    if k not in in_few and (t := getattr(layer, k)) is not None
                }
            )
            for layer in layers
        ]
    layers = in_8_bits(layers, in_few)
    hyper = dataclasses.replace(
        HYPER,
        lr=torch.tensor(0.1) if on_device else float(number),
        weight_decay=float(number),
        trust_ratio=trust_ratio,
        stochastic_rounding=param == bf16,
    )
    scales = Scales(torch.tensor(0.5), torch.tensor(1.0)) if on_device else Scales()
    triton.step([with_memory(layer, hyper) for layer in layers], hyper, scales, Scratch())


def compiled() -> dict[int, Any]:
    return {id(k): k for kernel in (triton.sweep, triton.adapt) for k in kernel.device_caches[0][0].values()}


def main() -> None:
    capability, *names = sys.argv[1:]
    gpu = Driver(int(capability))
    driver.set_active(gpu)
    for name, options in cases(names or list(DTYPES), int(capability)):
        before = compiled()
        gpu.launched.clear()
        take_step(name, **options)
        launched = list(gpu.launched)
        found = compiled()
        for number in (0, 1, 16, 0xFFFFFFFF):  # compile nothing
            take_step(name, **options, number=number)
        assert len(compiled()) == len(found)
        for k in [k for key, k in found.items() if key not in before]:
            constants = {k.src.fn.arg_names[i]: str(value) for (i, *_), value in k.src.constants.items()}
            line = {
                "kernel": k.name,
                "dtypes": name,
                **options,
                "launched": launched,
                "constants": constants,
                "itemsizes": [1 if t == "8bit" else t.itemsize for t in DTYPES[name]],
                "resources": resources(k.kernel),
                "widths": widths(k.asm["ptx"]),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
