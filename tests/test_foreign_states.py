"""State dicts of other LAMBs that once loaded without a word, and were wrong; moments in few bits."""

from __future__ import annotations

import pytest
import torch
from support import assert_near, assert_same_state, make_grads, make_params, take_steps

from thalweg import ALTO, E, Lamb

OURS = {"ALTO": ALTO, "Lamb": Lamb, "E(Lamb)": lambda params: E(Lamb(params), 0.5, 0.1)}
SHAPES = ((3, 4), (5,))
GROUP = {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1, "params": [0, 1]}


def moments(dtype=torch.float32, **more):
    return {
        i: {**more, "exp_avg": torch.full(s, 0.1, dtype=dtype), "exp_avg_sq": torch.full(s, 0.01, dtype=dtype)}
        for i, s in enumerate(SHAPES)
    }


FOREIGN = {
    "colossalai": ({"bias_correction": False}, moments(step=3)),
    "deepspeed": (
        {"bias_correction": True, "max_grad_norm": 1.0, "max_coeff": 10.0, "min_coeff": 0.01},
        moments(step=3),
    ),
    "pytorch_optimizer": ({"weight_decouple": True, "adam": False, "max_grad_norm": 1.0}, moments(step=3)),
    "bitsandbytes": ({"alpha": 0.0, "t_alpha": None, "t_beta3": None}, moments(step=3)),
    "timm": ({"always_adapt": False, "bias_correction": True, "grad_averaging": True, "step": 3}, moments()),
    "apex": ({"bias_correction": True, "grad_averaging": True, "max_grad_norm": 1.0, "step": 3}, moments()),
    "torch_optimizer": ({}, moments(step=3, weight_norm=1.0, adam_norm=1.0, trust_ratio=1.0)),
}


@pytest.mark.parametrize("library", FOREIGN)
@pytest.mark.parametrize("cls", OURS)
def test_another_lamb_is_refused_and_the_error_says_what_to_write(cls, library):
    params = make_params(SHAPES)
    optimizer, twin = OURS[cls](params), OURS[cls](params)
    options, state = FOREIGN[library]
    text = rf'^state_dict must be .*thalweg\.lamb_state\("{library}", state_dict, optimizer\).*{library}\'s LAMB'
    with pytest.raises(ValueError, match=text):
        optimizer.load_state_dict({"state": state, "param_groups": [{**GROUP, **options}]})
    assert_same_state(optimizer, twin)


def test_an_adam_that_looks_like_a_lamb_is_loaded_as_the_error_says_and_goes_on_as_adamw():
    """Colossalai's HybridAdam has the names of its Lamb."""
    params, others = make_params(SHAPES), make_params(SHAPES)
    optimizer, adamw = Lamb(params, trust_ratio=False), torch.optim.AdamW(others)
    saved = {"state": moments(step=3), "param_groups": [{**GROUP, "bias_correction": True}]}
    with pytest.raises(ValueError, match=r"HybridAdam .*, delete 'bias_correction' from its groups and load it"):
        optimizer.load_state_dict(saved)
    for group in saved["param_groups"]:
        del group["bias_correction"]
    optimizer.load_state_dict(saved)
    group = {**adamw.state_dict()["param_groups"][0], **GROUP}
    adamw.load_state_dict({"state": moments(step=3), "param_groups": [group]})
    grads = make_grads(params, 3)
    take_steps(optimizer, params, grads)
    take_steps(adamw, others, grads)
    assert_near(params, others, 1e-6)


def test_an_adam_that_corrects_its_bias_is_no_lamb():
    """DeepSpeed's Adam on the CPU has colossalai's names and amsgrad."""
    optimizer = Lamb(make_params(SHAPES))
    group = {**GROUP, "bias_correction": True, "amsgrad": False}
    optimizer.load_state_dict({"state": moments(step=3), "param_groups": [group]})
    assert optimizer.param_groups[0]["bias_correction"] is True


@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_state_that_no_parameter_would_take_is_refused(cls):
    optimizer = cls(make_params(SHAPES))
    state = dict(zip(("weight", "bias"), moments(step=3).values(), strict=True))
    with pytest.raises(ValueError, match=r"^state must be under the keys .*lamb_state.*, got \['weight', 'bias'\]$"):
        optimizer.load_state_dict({"state": state, "param_groups": [GROUP]})
    assert not optimizer.state
    named = {**GROUP, "params": ["weight", "bias"]}  # as torch's functions for distributed checkpoints have it
    optimizer.load_state_dict({"state": state, "param_groups": [named]})
    assert len(optimizer.state) == len(SHAPES)


@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_moments_in_float16_become_float32_and_those_in_bfloat16_stay(cls):
    for dtype, stored, said in (
        (torch.float16, torch.float32, None),
        (torch.bfloat16, torch.bfloat16, "bfloat16"),
    ):
        params = make_params(SHAPES, torch.float16)
        optimizer = cls(params)
        optimizer.load_state_dict({"state": moments(dtype, step=3), "param_groups": [GROUP]})
        assert {state[name].dtype for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")} == {
            stored
        }
        told = optimizer.param_groups[0]["state_dtype"]
        assert (told["exp_avg_sq"] if isinstance(told, dict) else told) == said
        take_steps(optimizer, params, make_grads(params, 1))


def test_a_second_moment_of_small_gradients_grows_in_float16():
    params = make_params(SHAPES, torch.float16)
    optimizer = Lamb(params)
    zeros = {
        i: {k: torch.zeros(s, dtype=torch.float16) for k in ("exp_avg", "exp_avg_sq")} for i, s in enumerate(SHAPES)
    }
    optimizer.load_state_dict({"state": {i: {"step": 3, **x} for i, x in zeros.items()}, "param_groups": [GROUP]})
    take_steps(optimizer, params, [[torch.full_like(p, 1e-4) for p in params]])
    assert all((state["exp_avg_sq"] > 5e-12).all() for state in optimizer.state.values())
