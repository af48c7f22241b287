"""Stepping inside backward refuses what needs all gradients at once, and optimizers of which it knows nothing."""

from __future__ import annotations

import pytest
import torch
from support import assert_same, clone_params
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, SparseAdam

from thalweg import ALTO, E, EAdamW, Lamb, step_in_backward


def test_a_second_backward_pass_within_a_step_raises_and_changes_nothing():
    model = nn.Linear(3, 2)
    optimizer = ALTO(model.parameters(), nonfinite="propagate")
    step_in_backward(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    before = clone_params(model.parameters())
    with pytest.raises(
        RuntimeError, match=r"has a second gradient in one step: .* call optimizer\.step\(\) after each"
    ):
        model(torch.ones(1, 3)).sum().backward()
    assert_same(model.parameters(), before)


def test_a_grad_scaler_is_told_that_it_cannot_be_used():
    model = nn.Linear(3, 2)
    for optimizer in (ALTO(model.parameters(), nonfinite="propagate"), EAdamW(model.parameters(), fused=True)):
        handle = step_in_backward(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        with pytest.raises(RuntimeError, match=r"^a GradScaler cannot be used when stepping in backward: .* bfloat16"):
            scaler.step(optimizer)
        handle.remove()


def test_parameters_that_were_replaced_are_noticed():
    model = nn.Linear(3, 2)
    optimizer = Lamb(model.parameters(), nonfinite="propagate")
    step_in_backward(optimizer)
    optimizer.param_groups[0]["params"] = clone_params(model.parameters())
    with pytest.raises(
        RuntimeError, match=r"^the optimizer's parameters have been replaced: call step_in_backward again"
    ):
        model(torch.ones(1, 3)).sum().backward()


class Mine(SGD):
    pass


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (AdamW, "AdamW"),
        (lambda ps: E(LBFGS(ps)), "E around LBFGS"),
        (lambda ps: E(SparseAdam(ps)), "E around SparseAdam"),
        (lambda ps: E(Mine(ps, 0.1)), "E around Mine"),
        (E.of(LBFGS), "ELBFGS around LBFGS"),
        (lambda ps: E(Lamb(ps)), "E around Lamb"),
    ],
)
def test_optimizers_of_which_nothing_is_known_are_refused(build, kind):
    params = list(nn.Linear(3, 2).parameters())
    text = rf"^optimizer must be ALTO, Lamb, or E around one of torch's SGD, Adam, .*, Muon, got {kind}$"
    with pytest.raises(TypeError, match=text):
        step_in_backward(build(params))
    assert not any(p._post_accumulate_grad_hooks for p in params)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (ALTO, r"nonfinite must be 'propagate' to step in backward, or .* nonfinite_by_layer=True, got 'skip'"),
        (lambda ps: Lamb(ps, nonfinite="raise"), r"nonfinite must be 'propagate' to step .*, got 'raise'"),
        (lambda ps: EAdamW(ps, nonfinite="skip"), r"nonfinite must be 'propagate' to step .*, got 'skip'"),
        (
            lambda ps: Lamb(ps, nonfinite="propagate", max_grad_norm=1.0),
            r"max_grad_norm must be None to step in backward, when .*, got 1\.0",
        ),
    ],
)
def test_what_needs_all_gradients_is_refused(build, text):
    params = list(nn.Linear(3, 2).parameters())
    optimizer = build(params)
    with pytest.raises(ValueError, match=f"^{text}$"):
        step_in_backward(optimizer)
    assert not any(p._post_accumulate_grad_hooks for p in params)
    assert "_step_supports_amp_scaling" not in vars(optimizer)


def test_an_option_set_later_is_refused_in_backward():
    model = nn.Linear(3, 2)
    optimizer = Lamb(model.parameters(), nonfinite="propagate")
    step_in_backward(optimizer)
    optimizer.param_groups[0]["max_grad_norm"] = 0.5
    with pytest.raises(ValueError, match=r"^max_grad_norm must be None to step in backward"):
        model(torch.ones(1, 3)).sum().backward()


def test_it_is_done_once():
    optimizer = EAdamW(nn.Linear(3, 2).parameters())
    step_in_backward(optimizer)
    with pytest.raises(
        ValueError, match=r"^optimizer must be one that does not step in backward already, got 'EAdamW'$"
    ):
        step_in_backward(optimizer)
    with pytest.raises(ValueError, match=r"^nonfinite_by_layer must be True or False, got 1$"):
        step_in_backward(E(Adam(nn.Linear(3, 2).parameters())), nonfinite_by_layer=1)
