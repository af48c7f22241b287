"""An optimizer is the same whatever default device and dtype it is built or steps under."""

from __future__ import annotations

import copy
import itertools
from contextlib import contextmanager, nullcontext

import pytest
import torch
from support import E_WAYS, assert_same, make_grads, make_params, pairwise, take_steps

from thalweg import ALTO, ESGD, EAdamW, Lamb
from thalweg.kernels import eightbit

OWN = {"alpha": -0.5, "beta": 0.25}
OPTIMIZERS = {
    "ALTO": lambda ps, **o: ALTO(ps, **OWN, max_grad_norm=0.5, **o),
    "ALTO, capturable": lambda ps, **o: ALTO(ps, **OWN, capturable=True, **o),
    "ALTO, bfloat16": lambda ps, **o: ALTO(ps, **OWN, state_dtype=torch.bfloat16, **o),
    "ALTO, 8 bits": lambda ps, **o: ALTO(ps, **OWN, state_dtype="8bit", **o),
    "Lamb": Lamb,
    "EAdamW, skip": lambda ps, **o: EAdamW(ps, **OWN, nonfinite="skip", **o),
    "EAdamW": lambda ps, **o: EAdamW(ps, **OWN, **o),
    "ESGD, skip": lambda ps, **o: ESGD(ps, **OWN, lr=0.1, momentum=0.5, nonfinite="skip", **o),
}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# where it is built, where it steps
UNDER = {
    "built under meta": (lambda: torch.device("meta"), nullcontext),
    "meta": (lambda: torch.device("meta"), lambda: torch.device("meta")),
    "float64": (lambda: default_dtype(torch.float64), lambda: default_dtype(torch.float64)),
    "bfloat16": (lambda: default_dtype(torch.bfloat16), lambda: default_dtype(torch.bfloat16)),
}


def trained(build, options, at_building=nullcontext, at_steps=nullcontext):
    params = make_params(((64, 64), (5,)), torch.float32)
    with at_building():
        optimizer = OPTIMIZERS[build](params, **options)
    rows = make_grads(params, 4)
    if build != "EAdamW":
        rows[2][0][0] = float("nan")
    with at_steps():
        take_steps(optimizer, params, rows)
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(saved)
        take_steps(optimizer, params, rows[:1])
    return params, optimizer


@pytest.mark.parametrize(
    ("build", "way", "under"),
    pairwise(
        (build, way, under)
        for build, way, under in itertools.product(OPTIMIZERS, E_WAYS, UNDER)
        if "E" not in build or under != "meta"  # torch's own optimizers make their counts under the default device
    ),
)
def test_defaults_of_torch_change_nothing(build, way, under):
    eightbit.tables.cache_clear()
    params, optimizer = trained(build, E_WAYS[way], *UNDER[under])
    expected, plain = trained(build, E_WAYS[way])
    assert_same(params, expected)
    assert all(p.isfinite().all() for p in params)
    assert optimizer.skipped_steps.device.type == "cpu"
    assert optimizer.skipped_steps == plain.skipped_steps == (0 if build == "EAdamW" else 1)


@pytest.mark.parametrize("build", OPTIMIZERS)
def test_parameters_may_be_materialised_after_the_optimizer_is_built(build):
    """They stay the optimizer's own where torch swaps what is in them."""
    expected, _ = trained(build, {})
    rows = make_grads(expected, 4)
    if build != "EAdamW":
        rows[2][0][0] = float("nan")
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with torch.device("meta"):
            model = torch.nn.ParameterList([torch.nn.Parameter(torch.empty(p.shape)) for p in expected])
            optimizer = OPTIMIZERS[build](model.parameters())
        model.to_empty(device="cpu")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    params = list(model.parameters())
    with torch.no_grad():
        for p, start in zip(params, make_params(((64, 64), (5,)), torch.float32), strict=True):
            p.copy_(start)
    take_steps(optimizer, params, [*rows, rows[0]])
    assert_same(params, expected)


def test_state_in_8_bits_with_scales_of_another_dtype_is_refused():
    _, optimizer = trained("ALTO, 8 bits", {})
    saved = copy.deepcopy(optimizer.state_dict())
    x = saved["state"][0]["exp_avg"]
    x.scale = x.scale.double()
    with pytest.raises(
        ValueError, match=r"^exp_avg of a parameter of shape \(64, 64\) must be 8-bit .* of torch.float64$"
    ):
        optimizer.load_state_dict(saved)
