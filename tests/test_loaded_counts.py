"""Numbers in a loaded state are brought into the form from which a step goes on, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from support import E_WAYS, assert_same, clone_params, make_grads, make_params, take_steps

from thalweg import ALTO, E, EAdam, EAdamW, Lamb

STEPS = 3
FORMS = {
    "int64": lambda t: t.long(),
    "int32 of shape (1,)": lambda t: t.int().reshape(1),
    "bfloat16": lambda t: t.bfloat16(),
    "float16": lambda t: t.half(),
    "float64": lambda t: t.double(),
    "shape (1,)": lambda t: t.reshape(1),
    "shape (1, 1)": lambda t: t.reshape(1, 1),
    "number": lambda t: t.item(),
    "integer": lambda t: int(t.item()),
}
OF = {  # each with the optimizer of torch whose checkpoint it takes
    "EAdamW": (EAdamW, torch.optim.AdamW),
    "EAdam": (EAdam, torch.optim.Adam),
    "EAdamW, amsgrad": (lambda ps, **o: EAdamW(ps, amsgrad=True, **o), torch.optim.AdamW),
    "ALTO": (ALTO, torch.optim.AdamW),
    "Lamb": (Lamb, torch.optim.Adam),
    **{
        base.__name__: (lambda ps, base=base, **o: E(base(ps, **o)), base)
        for base in (
            *(torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.Adadelta, torch.optim.RMSprop),
            *(torch.optim.Adagrad, torch.optim.Rprop, torch.optim.ASGD),
        )
    },
}


def saved_by(base, params):
    optimizer = base(params, lr=0.0625)
    take_steps(optimizer, params, make_grads(params, STEPS))
    return optimizer.state_dict()


def resumed(build, params, saved, **options):
    optimizer = build(params, **options)
    optimizer.load_state_dict(copy.deepcopy(saved))
    return optimizer


@pytest.mark.parametrize("name", OF)
def test_a_count_in_another_form_is_gone_on_from(name):
    build, base = OF[name]
    start = make_params(dtype=torch.float32)
    saved = saved_by(base, start)
    if name == "EAdamW, amsgrad":
        saved["param_groups"][0]["amsgrad"] = True
        for state in saved["state"].values():
            state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
    expected = None
    for form in (lambda t: t, *FORMS.values()):
        changed = copy.deepcopy(saved)
        for state in changed["state"].values():
            state["step"] = form(state["step"])
        params = clone_params(start)
        optimizer = resumed(build, params, changed)
        take_steps(optimizer, params, make_grads(params, 2, seed=5))
        counts = [optimizer.state[p]["step"] for p in params]
        assert [(c.shape, c.item()) for c in counts] == [((), STEPS + 2)] * len(params)
        assert all(c.dtype in (torch.float32, torch.float64) for c in counts)
        expected = expected or params
        assert_same(params, expected)


@pytest.mark.parametrize("way", E_WAYS)
@pytest.mark.parametrize("form", ["int64", "bfloat16", "shape (1,)"])
def test_so_it_is_in_every_way_to_step(form, way):
    params = make_params(dtype=torch.float32)
    saved = saved_by(torch.optim.AdamW, params)
    changed = copy.deepcopy(saved)
    for group in (*saved["param_groups"], *changed["param_groups"]):
        group.update({"foreach": None, "fused": None, **E_WAYS[way]})
    for state in changed["state"].values():
        state["step"] = FORMS[form](state["step"])
    twins = clone_params(params)
    for ps, source in ((params, changed), (twins, saved)):
        take_steps(resumed(EAdamW, ps, source), ps, make_grads(ps, 2, seed=5))
    assert_same(params, twins)


KEPT = [("NAdam", "mu_product"), ("ASGD", "eta"), ("ASGD", "mu")]


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
@pytest.mark.parametrize(("base", "name"), KEPT)
def test_another_number_of_one_element_is_gone_on_from(base, name, shape):
    params = make_params(dtype=torch.float32)
    saved = saved_by(OF[base][1], params)
    changed = copy.deepcopy(saved)
    for state in changed["state"].values():
        state[name] = state[name].reshape(shape)
    twins = clone_params(params)
    for ps, source in ((params, changed), (twins, saved)):
        optimizer = resumed(OF[base][0], ps, source)
        assert optimizer.state[ps[0]][name].shape == ()
        take_steps(optimizer, ps, make_grads(ps, 2, seed=5))
    assert_same(params, twins)


@pytest.mark.parametrize(
    "value", [torch.tensor(float("nan")), torch.tensor(float("inf")), torch.ones(2), "many", None], ids=str
)
@pytest.mark.parametrize(("base", "name"), KEPT)
def test_what_is_no_finite_number_is_refused_and_the_optimizer_is_as_it_was(base, name, value):
    params = make_params(dtype=torch.float32)
    saved = saved_by(OF[base][1], params)
    optimizer = resumed(OF[base][0], params, saved)
    saved["state"][1][name] = value
    state = optimizer.state
    with pytest.raises(
        ValueError, match=rf"^{name} of a parameter of shape \(5,\) must be a finite number, got |raises"
    ):
        optimizer.load_state_dict(saved)
    assert optimizer.state is state
    assert all(isinstance(optimizer.state[p][name], torch.Tensor) for p in params)


@pytest.mark.parametrize("name", ["ALTO", "Lamb", "EAdamW", "Rprop"])
def test_a_count_that_is_text_is_one_clear_error(name):
    build, base = OF[name]
    saved = saved_by(base, make_params(dtype=torch.float32))
    saved["state"][0]["step"] = "2"
    with pytest.raises(ValueError, match=r"^step of parameter 0 must be a whole number in \[0, inf\), got '2'$"):
        resumed(build, make_params(dtype=torch.float32), saved)
