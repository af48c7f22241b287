"""Steps of every kind, compiled for a GPU that need not be there; a process of its own, without the interpreter.

Everything but the GPU's driver is real: ``step`` launches, Triton binds the arguments, compiles, and assembles with
ptxas. The driver given to it launches nothing. Printed is, for each kernel and as JSON: its name, the step that it is
of, the keywords it was compiled for, what ``cuobjdump`` says of the machine code, and the widths of its loads and
stores of global memory.
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

import torch
import triton as triton_package
from kernel_layers import HYPER, TENSORS, make_layers
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from thalweg.backends import Scales, triton
from thalweg.backends.pieces import Scratch

f64, f32, f16, bf16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = {  # of parameter, gradient, m, v, b
    "float32": (f32, f32, f32, f32, f32),
    "float64": (f64, f64, f64, f64, f64),
    "bfloat16": (bf16, bf16, f32, f32, f32),
    "float16 gradients": (f32, f16, f32, f32, f32),
    "bfloat16 state": (f32, f32, bf16, bf16, bf16),
    "all bfloat16": (bf16, bf16, bf16, bf16, bf16),
    "float64, float32 state": (f64, f64, f32, f32, f32),
}
CUOBJDUMP = Path(triton_package.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Driver:
    """What Triton asks of a driver."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self
        self.loaded: list[tuple[str, bytes]] = []
        self.launched: list[object] = []

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

    def launcher_cls(self, source: object, metadata: object) -> object:
        def launch(*args: object) -> None:
            self.launched.append((source, args[:3]))

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


def cases(names: list[str]):
    for name, explore, trust_ratio, on_device, aligned in itertools.product(names, *[(True, False)] * 4):
        yield name, {"explore": explore, "trust_ratio": trust_ratio, "on_device": on_device, "aligned": aligned}


def take_step(name: str, explore: bool, trust_ratio: bool, on_device: bool, aligned: bool, seed: int = 7) -> None:
    """With steps, skips, clipping and learning rate in tensors if ``on_device``, else in numbers."""
    param, grad, m, v, b = DTYPES[name]
    layers = make_layers(
        [(40,), (8, 16)], param, grad, explore=explore, steps=(torch.tensor(3.0),) if on_device else (3.0,)
    )
    layers = [
        layer._replace(
            exp_avg=layer.exp_avg.to(m),
            exp_avg_sq=layer.exp_avg_sq.to(v),
            explore_ema=layer.explore_ema.to(b) if explore else None,
            seed=seed,
        )
        for layer in layers
    ]
    if not aligned:
        layers = [
            layer._replace(
                **{
                    k: torch.cat((t.flatten()[:1], t.flatten()))[1:]
                    for k in TENSORS
                    if (t := getattr(layer, k)) is not None
                }
            )
            for layer in layers
        ]
    hyper = dataclasses.replace(
        HYPER, lr=torch.tensor(0.1) if on_device else 0.1, trust_ratio=trust_ratio, stochastic_rounding=param == bf16
    )
    scales = Scales(torch.tensor(0.5), torch.tensor(1.0)) if on_device else Scales()
    triton.step(layers, hyper, scales, Scratch())


def main() -> None:
    capability, *names = sys.argv[1:]
    gpu = Driver(int(capability))
    driver.set_active(gpu)
    for name, options in cases(names or list(DTYPES)):
        seen = {id(k) for fn in (triton.sweep, triton.adapt) for k in fn.device_caches[0][0].values()}
        gpu.launched.clear()
        take_step(name, **options)
        launches = len(gpu.launched)
        for seed in (1, 16, 0xFFFFFFFF):  # are arguments, and compile nothing
            take_step(name, **options, seed=seed)
        fresh = [k for fn in (triton.sweep, triton.adapt) for k in fn.device_caches[0][0].values() if id(k) not in seen]
        for k in fresh:
            constants = {k_.src.fn.arg_names[i]: v for k_ in (k,) for (i, *_), v in k.src.constants.items()}
            print(
                json.dumps(
                    {
                        "kernel": k.name,
                        "of": [name, options],
                        "launches": launches,
                        "fresh": len(fresh),
                        "constants": {key: str(value) for key, value in constants.items()},
                        "resources": resources(k.kernel),
                        "widths": widths(k.asm["ptx"]),
                        "spills": "st.local" in k.asm["ptx"] or "ld.local" in k.asm["ptx"],
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
