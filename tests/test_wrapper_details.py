"""What E keeps, passes on and leaves alone, beside its steps."""

from __future__ import annotations

import pytest
import torch
from support import clone_params, make_grads, make_params, take_steps

from thalweg import E, EAdamW


@pytest.mark.parametrize("name", ["train", "eval", "pc_backward", "share_memory"])
def test_these_methods_of_the_base_are_passed_on(name):
    class Own(torch.optim.SGD):
        pass

    setattr(Own, name, lambda self: f"{name} of the base")
    optimizer = E(Own(make_params(), lr=0.1))
    assert getattr(optimizer, name)() == f"{name} of the base"
    Own.first_step = lambda self: None
    with pytest.raises(AttributeError, match=r"no attribute 'first_step': it is Own's own, which E does not pass on"):
        optimizer.first_step()


def test_a_scheduled_alpha_stays_where_the_base_alone_is_loaded():
    params = make_params()
    base = torch.optim.AdamW(clone_params(params))
    optimizer = EAdamW(params, alpha=0.5, beta=0.5)
    optimizer.param_groups[0].update(explore_alpha=0.25, explore_beta=0.75)
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.param_groups[0]["explore_alpha"] == 0.25
    assert optimizer.param_groups[0]["explore_beta"] == 0.75


def test_a_group_that_is_added_has_the_count_of_skipped_steps():
    params = make_params()
    optimizer = EAdamW(params[:2], nonfinite="skip")
    for p in params[:2]:
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    optimizer.state_dict()
    optimizer.add_param_group({"params": params[2:]})
    assert [group["explore_skipped"] for group in optimizer.param_groups] == [1, 1]


def test_init_state_does_nothing_where_e_has_begun():
    params = make_params()
    params[1].requires_grad_(False)
    optimizer = EAdamW(params)
    grads = [[None if i == 1 else g for i, g in enumerate(row)] for row in make_grads(params, 1)]
    take_steps(optimizer, params, grads)
    params[1].requires_grad_(True)
    optimizer.init_state()
    assert params[1] not in optimizer.state
