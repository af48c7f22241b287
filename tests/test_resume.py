"""Train, save, resume equals never having stopped, bit for bit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support import (
    assert_moved,
    assert_same,
    assert_same_state,
    clone_params,
    make_grads,
    make_params,
    take_steps,
    through_a_file,
)
from torch.optim.lr_scheduler import LambdaLR

from thalweg import ALTO, E, EAdamW, Lamb

BEFORE, AFTER = 4, 4
DTYPES = [torch.float32, torch.bfloat16]


def trained(entry, dtype, **kwargs):
    """An optimizer after a few steps, its parameters, and the gradients of the steps to come."""
    params = make_params(entry.shapes, dtype)
    grads = make_grads(params, BEFORE + AFTER)
    optimizer = entry.build(params, **kwargs)
    take_steps(optimizer, params, grads[:BEFORE])
    return optimizer, params, grads[BEFORE:]


def is_resumed_bit_for_bit(entry, dtype):
    return dtype != torch.bfloat16 or entry.resumes_bfloat16


@pytest.mark.pairwise(dtype=DTYPES)
@pytest.mark.where(test=lambda entry, _, dtype: is_resumed_bit_for_bit(entry, dtype))
def test_a_fresh_optimizer_resumes_from_a_file(entry, option, dtype):
    kwargs = option.kwargs if option is not None else {}
    optimizer, params, grads = trained(entry, dtype, **kwargs)
    resumed_params = clone_params(params)
    resumed = entry.build(resumed_params)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same_state(resumed, optimizer)
    for optimizer_, params_ in ((optimizer, params), (resumed, resumed_params)):
        take_steps(optimizer_, params_, grads)
    assert_same(resumed_params, params)
    assert_same_state(resumed, optimizer)


@pytest.mark.where(test=lambda entry: entry.complex)
def test_complex_parameters_resume_from_a_file(entry):
    optimizer, params, grads = trained(entry, torch.complex64)
    resumed_params = clone_params(params)
    resumed = entry.build(resumed_params)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for optimizer_, params_ in ((optimizer, params), (resumed, resumed_params)):
        take_steps(optimizer_, params_, grads)
    assert_same(resumed_params, params)
    assert_same_state(resumed, optimizer)


@pytest.mark.pairwise(dtype=DTYPES)
@pytest.mark.where(test=is_resumed_bit_for_bit)
def test_loading_its_own_state_dict_changes_nothing(entry, dtype):
    """As Accelerate does in ``prepare``."""
    optimizer, params, grads = trained(entry, dtype)
    twin, twin_params, _ = trained(entry, dtype)
    twin.load_state_dict(twin.state_dict())
    assert_same_state(twin, optimizer)
    take_steps(optimizer, params, grads)
    take_steps(twin, twin_params, grads)
    assert_same(twin_params, params)


def test_the_state_dict_that_was_loaded_is_not_shared(entry):
    optimizer, params, grads = trained(entry, torch.float32)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed_params = clone_params(params)
    resumed = entry.build(resumed_params)
    source = copy.deepcopy(saved)
    resumed.load_state_dict(source)
    take_steps(resumed, resumed_params, grads)
    for i, state in saved["state"].items():
        # What is the base's, torch shares.
        for key in set(entry.wide) - (set(entry.counters) if issubclass(entry.constructor, E) else set()):
            assert torch.equal(source["state"][i][key], state[key]), key


def test_the_users_hooks_on_loading_see_tensors_and_what_they_return_is_loaded(entry):
    optimizer, params, _ = trained(entry, torch.bfloat16)
    own = sorted(set(entry.wide) - set(entry.counters))
    resumed_params, seen = clone_params(params), []
    resumed = entry.build(resumed_params)

    def doubled(_, loaded):
        state = {i: {k: 2 * v if k in own else v for k, v in s.items()} for i, s in loaded["state"].items()}
        return {**loaded, "state": state}

    def loaded(made):
        seen.extend((made.state[p][key], 2 * optimizer.state[q][key]) for p, q in pairs for key in own)

    pairs = list(zip(resumed_params, params, strict=True))
    resumed.register_load_state_dict_pre_hook(doubled)
    resumed.register_load_state_dict_post_hook(loaded)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert len(seen) == len(own) * len(params)
    assert_same(*zip(*seen, strict=True))
    assert {a.dtype for a, _ in seen} == {torch.float32}


@pytest.mark.parametrize("way", ["file", "itself"])
def test_a_scheduler_keeps_working_after_load(entry, way):
    params = make_params(entry.shapes, torch.float32)
    grads = make_grads(params, 4)
    optimizer = entry.build(params)
    start = optimizer.param_groups[0]["lr"]
    scheduler = LambdaLR(optimizer, lambda k: (1.0, 0.5, 0.0)[min(k, 2)])
    take_steps(optimizer, params, grads[:1])
    scheduler.step()
    state_dict = optimizer.state_dict() if way == "itself" else through_a_file(optimizer.state_dict())
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["lr"] == start / 2

    before = clone_params(params)
    take_steps(optimizer, params, grads[1:2])
    assert_moved(params, before)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.0
    before = clone_params(params)
    take_steps(optimizer, params, grads[2:])
    assert_same(params, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_like_the_original_and_apart_from_it(entry, copied):
    optimizer, params, grads = trained(entry, torch.bfloat16)
    twin, twin_params = copied((optimizer, params))
    assert type(twin) is type(optimizer)
    assert_same_state(twin, optimizer)
    assert all(q is p for q, p in zip(twin_params, twin.param_groups[0]["params"], strict=True))
    before = clone_params(params)
    take_steps(twin, twin_params, grads)
    assert_same(params, before)
    take_steps(optimizer, params, grads)
    assert_same(twin_params, params)
    assert_same_state(twin, optimizer)


@pytest.mark.parametrize("base", [torch.optim.Adagrad, torch.optim.RMSprop])
def test_a_class_made_by_e_of_survives_pickle_and_deepcopy_without_an_importable_name(base):
    params = make_params(dtype=torch.float32)
    optimizer = E.of(base)(params)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert type(twin) is E.of(base)
        assert type(twin.base) is base
        assert twin.param_groups is twin.base.param_groups


def test_the_state_dict_of_plain_adamw_starts_e_there():
    """E around what AdamW left: α and β1 stay, b is zero at the first step."""
    params = make_params(dtype=torch.float32)
    grads = make_grads(params, BEFORE + AFTER)
    plain = torch.optim.AdamW(params, lr=0.05, betas=(0.8, 0.9))
    take_steps(plain, params, grads[:BEFORE])

    loaded_params, wrapped_params = clone_params(params), clone_params(params)
    loaded = EAdamW(loaded_params, alpha=0.5, beta=0.25)
    loaded.load_state_dict(through_a_file(plain.state_dict()))
    group = loaded.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.05, (0.8, 0.9))
    assert (group["explore_alpha"], group["explore_beta"]) == (0.5, 0.25)
    assert all("explore_ema" not in loaded.state[p] for p in loaded_params)

    base = torch.optim.AdamW(wrapped_params)
    base.load_state_dict(plain.state_dict())
    wrapped = E(base, alpha=0.5, beta=0.25)
    for optimizer, params_ in ((loaded, loaded_params), (wrapped, wrapped_params)):
        take_steps(optimizer, params_, grads[BEFORE:])
    assert_same(loaded_params, wrapped_params)
    assert all(loaded.state[p]["step"] == BEFORE + AFTER for p in loaded_params)


def test_the_state_dict_of_plain_adamw_gives_lamb_its_moments():
    params = make_params(dtype=torch.float32)
    plain = torch.optim.AdamW(params, lr=0.05, betas=(0.8, 0.9), eps=1e-4)
    take_steps(plain, params, make_grads(params, BEFORE))
    lamb = Lamb(clone_params(params), trust_eps=0.25)
    lamb.load_state_dict(plain.state_dict())
    group = lamb.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["trust_eps"]) == (0.05, (0.8, 0.9), 1e-4, 0.25)
    assert_same_state(lamb, plain)


def test_bad_hyperparameters_in_a_state_dict_are_refused():
    saved = ALTO(make_params()).state_dict()
    saved["param_groups"][0]["eps"] = -1.0
    with pytest.raises(ValueError, match=r"^eps must be a number in \[1\.18e-38, inf\), .*, got -1\.0$"):
        ALTO(make_params()).load_state_dict(saved)
    saved = EAdamW(make_params()).state_dict()
    saved["param_groups"][0]["explore_beta"] = 1.0
    with pytest.raises(ValueError, match=r"^explore_beta must be a number in \[0, 1\), got 1\.0$"):
        EAdamW(make_params()).load_state_dict(saved)


def test_a_state_dict_of_other_groups_is_refused(entry):
    saved = entry.build([{"params": [p]} for p in make_params(entry.shapes)]).state_dict()
    with pytest.raises(ValueError, match=r"^loaded state dict has a different number of parameter groups$"):
        entry.build(make_params(entry.shapes)).load_state_dict(saved)
