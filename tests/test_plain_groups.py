"""Groups hold Python's own types whatever they were given, and go through JSON; so full state dicts go on."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from capabilities import TABLE
from omegaconf import OmegaConf
from support import assert_same, assert_same_state, clone_params, make_grads, make_params, take_steps
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from thalweg import ALTO, ESGD, E, EAdam, EAdamW, Lamb

OPTIMIZERS = {
    "ALTO": ALTO,
    "ALTO, bfloat16": lambda params, **o: ALTO(params, state_dtype=torch.bfloat16, **o),
    "ALTO, mixed": lambda params, **o: ALTO(
        params, state_dtype={"exp_avg": torch.bfloat16}, trust_clip=(0.0, 9.0), **o
    ),
    "Lamb": Lamb,
    "EAdam": EAdam,
    "EAdamW": EAdamW,
    "EAdamW, foreach": lambda params, **o: EAdamW(params, foreach=True, **o),
    "EAdamW, skip": lambda params, **o: EAdamW(params, nonfinite="skip", **o),
    "ESGD": ESGD,
    "E(NAdam)": lambda params, **o: E(torch.optim.NAdam(params, **o)),
    "E(Rprop)": lambda params, **o: E(torch.optim.Rprop(params, **o)),
    "E(Adafactor)": lambda params, **o: E(torch.optim.Adafactor(params, **o)),
    "E.of(Muon)": lambda params, **o: E.of(torch.optim.Muon)([p for p in params if p.ndim == 2], **o),
    "E(Lamb)": lambda params, **o: E(Lamb(params, **o)),
}
WITH_BETAS = ("ALTO", "Lamb", "EAdam", "EAdamW", "EAdamW, foreach", "E(NAdam)")


def new_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))


def trained(build, steps=2, **options):
    model = new_model()
    params = list(model.parameters())
    optimizer = build(params, lr=0.0625, **options)
    take_steps(optimizer, params, make_grads(params, steps))
    optimizer.zero_grad()
    return model, optimizer


def printed(optimizer):
    """Its groups, through JSON."""
    groups = [{name: x for name, x in group.items() if name != "params"} for group in optimizer.param_groups]
    return json.loads(json.dumps(groups))


def types_of(optimizer):
    return [
        {name: (type(x), list(map(type, x)) if isinstance(x, tuple | list) else None) for name, x in group.items()}
        for group in optimizer.param_groups
    ]


def assert_goes_on_as(optimizer, params, twin, twin_params):
    for o, ps in ((optimizer, params), (twin, twin_params)):
        take_steps(o, ps, make_grads(ps, 2, seed=7))
    assert_same(params, twin_params)
    assert_same_state(optimizer, twin)


def test_the_groups_of_every_optimizer_print_as_json_with_every_option(entry):
    for option in (None, *entry.options):
        kwargs = {} if option is None else option.kwargs
        if any(isinstance(value, torch.Tensor) for value in kwargs.values()):
            kwargs = {**kwargs, "lr": kwargs["lr"].item()}  # a learning rate in a tensor stays one
        params = make_params(entry.shapes, torch.float32)
        optimizer = entry.build(params, **kwargs)
        before = printed(optimizer)
        if option is None or option.effect != "cuda":
            take_steps(optimizer, params, make_grads(params, 2))
        resumed = entry.build(clone_params(params), **kwargs)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert printed(resumed) == printed(optimizer), option
        assert printed(optimizer)[0].keys() == before[0].keys(), option
        assert types_of(resumed) == types_of(optimizer), option


@pytest.mark.parametrize("build", ["ALTO", "EAdamW, skip"])
def test_the_groups_have_the_number_of_skipped_steps_when_they_were_saved(build):
    params = make_params(dtype=torch.float32)
    optimizer = OPTIMIZERS[build](params)
    key = "skipped_steps" if build == "ALTO" else "explore_skipped"
    for k in range(3):
        take_steps(optimizer, params, [[torch.full_like(p, float("nan") if k < 2 else 1.0) for p in params]])
    assert isinstance(optimizer.skipped_steps, torch.Tensor)
    assert optimizer.skipped_steps == 2
    saved = optimizer.state_dict()
    assert [(type(group[key]), group[key]) for group in saved["param_groups"]] == [(int, 2)]
    resumed = OPTIMIZERS[build](clone_params(params))
    resumed.load_state_dict(saved)
    assert (resumed.skipped_steps, printed(resumed)[0][key]) == (2, 2)
    resumed.add_param_group({"params": make_params(((2,),))})
    assert [group[key] for group in resumed.param_groups] == [2, 2]


@pytest.mark.parametrize(
    "how", [{"full_state_dict": True}, {"cpu_offload": True}, {"flatten_optimizer_state_dict": True}]
)
@pytest.mark.parametrize("build", OPTIMIZERS)
def test_training_goes_on_from_every_kind_of_state_dict_that_torch_makes(build, how):
    options = StateDictOptions(**how)
    model, optimizer = trained(OPTIMIZERS[build])
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other = copy.deepcopy(model)
    resumed = OPTIMIZERS[build](list(other.parameters()))
    set_optimizer_state_dict(other, resumed, saved, options=options)
    assert types_of(resumed) == types_of(optimizer)
    assert printed(resumed) == printed(optimizer)
    params, twins = list(other.parameters()), list(model.parameters())
    if build == "E.of(Muon)":
        params, twins = params[::2], twins[::2]
    assert_goes_on_as(resumed, params, optimizer, twins)


def as_json(saved):
    return {**saved, "param_groups": json.loads(json.dumps(saved["param_groups"]))}


def mapped(saved, change):
    """Every option of every group changed, those in a sequence one by one; not the numbers of the parameters."""

    def changed(name, x):
        if name in ("params", "lr"):
            return x
        return [change(y) for y in x] if isinstance(x, tuple | list) else change(x)

    groups = [{name: changed(name, x) for name, x in group.items()} for group in saved["param_groups"]]
    return {**saved, "param_groups": groups}


def as_integer(x):
    return int(x) if isinstance(x, bool) else x


def as_tensor(x):
    return (
        torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None) if type(x) in (int, float, bool) else x
    )


def as_numpy(x):
    return np.asarray(x)[()] if type(x) in (int, float, bool, str) else x


FORMS = {
    "JSON": as_json,
    "OmegaConf": lambda saved: {**saved, "param_groups": list(map(dict, OmegaConf.create(saved["param_groups"])))},
    "integers for flags": lambda saved: mapped(saved, as_integer),
    "0-d tensors": lambda saved: mapped(saved, as_tensor),
    "NumPy": lambda saved: mapped(saved, as_numpy),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", OPTIMIZERS)
def test_options_that_come_back_in_other_types_are_loaded_in_their_own(build, form):
    model, optimizer = trained(OPTIMIZERS[build])
    other = copy.deepcopy(model)
    resumed = OPTIMIZERS[build](list(other.parameters()))
    resumed.load_state_dict(FORMS[form](copy.deepcopy(optimizer.state_dict())))
    assert types_of(resumed) == types_of(optimizer)
    assert printed(resumed) == printed(optimizer)
    params, twins = list(other.parameters()), list(model.parameters())
    if build == "E.of(Muon)":
        params, twins = params[::2], twins[::2]
    assert_goes_on_as(resumed, params, optimizer, twins)


def written(build, betas):
    optimizer = OPTIMIZERS[build](make_params(dtype=torch.float32))
    optimizer.param_groups[0]["betas"] = betas
    return optimizer


def added(build, betas):
    optimizer = OPTIMIZERS[build](make_params(((1, 1),), torch.float32))
    optimizer.add_param_group({"params": make_params(dtype=torch.float32), "betas": betas})
    del optimizer.param_groups[0]
    return optimizer


WAYS = {
    "constructor": lambda build, betas: OPTIMIZERS[build](make_params(dtype=torch.float32), betas=betas),
    "group": lambda build, betas: OPTIMIZERS[build]([{"params": make_params(dtype=torch.float32), "betas": betas}]),
    "added": added,
    "written": written,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", WITH_BETAS)
def test_betas_may_be_a_list(build, way):
    """And are a tuple in the group."""
    given, plain = (WAYS[way](build, betas) for betas in ([0.5, 0.75], (0.5, 0.75)))
    for optimizer in (given, plain):
        params = optimizer.param_groups[0]["params"]
        take_steps(optimizer, params, make_grads(params, 2))
    assert_same(given.param_groups[0]["params"], plain.param_groups[0]["params"])
    assert given.param_groups[0]["betas"] == (0.5, 0.75)
    assert given.defaults["betas"] == plain.defaults["betas"]


@pytest.mark.parametrize("make", [torch.tensor, np.float32, np.array])
@pytest.mark.parametrize("name", ["explore_alpha", "explore_beta", "eps", "weight_decay"])
def test_a_number_that_a_schedule_writes_for_e_may_be_of_another_type(name, make):
    params, twins = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    for ps, value in ((params, make(0.375)), (twins, 0.375)):
        optimizer = EAdamW(ps, lr=0.1, alpha=0.5, beta=0.25)
        optimizer.param_groups[0][name] = value
        take_steps(optimizer, ps, make_grads(ps, 2))
    assert_same(params, twins)


@pytest.mark.parametrize("alpha", [-4.0, 4.0, float("nan"), None, torch.tensor(-4.0)])
@pytest.mark.parametrize("cls", [ALTO, EAdamW, ESGD])
def test_an_alpha_out_of_range_that_a_schedule_writes_is_an_error_before_anything_changes(cls, alpha):
    params = make_params(dtype=torch.float32)
    before = clone_params(params)
    optimizer = cls(params, alpha=0.5, beta=0.75)
    name = "alpha" if cls is ALTO else "explore_alpha"
    optimizer.param_groups[0][name] = alpha
    with pytest.raises(ValueError, match=rf"^{name} must be a number in \(-4, 4\), as .*, got "):
        take_steps(optimizer, params, make_grads(params, 1))
    assert_same(params, before)
    assert not optimizer.state


@pytest.mark.parametrize("cls", [ALTO, Lamb])
@pytest.mark.parametrize("dtype", [torch.bfloat16, {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.float64}], ids=str)
def test_a_checkpoint_that_has_a_dtype_itself_still_loads(cls, dtype):
    params = make_params(dtype=torch.float32)
    optimizer = cls(params, state_dtype=dtype)
    take_steps(optimizer, params, make_grads(params, 2))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["state_dtype"] = dtype
    others = clone_params(params)
    resumed = cls(others)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["state_dtype"] == optimizer.param_groups[0]["state_dtype"]
    assert_goes_on_as(resumed, others, optimizer, params)


def test_the_table_of_optimizers_has_all_that_are_shipped():
    assert {ALTO, Lamb, EAdam, EAdamW, ESGD, E} <= {entry.constructor for entry in TABLE}
