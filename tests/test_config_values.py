"""Options as config files and NumPy give them: lists of any kind, dtypes by name; groups hold Python's own types."""

from __future__ import annotations

import array
import itertools

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from support import assert_same, make_grads, make_params, pairwise, take_steps, through_a_file

from thalweg import ALTO, E, EAdamW, Lamb, paper_defaults, param_groups

KINDS = {
    "list": list,
    "OmegaConf's": OmegaConf.create,
    "NumPy's": np.array,
    "NumPy's numbers": lambda values: [np.asarray(x)[()] for x in values],
    "tensor": lambda values: torch.tensor(values, dtype=None if type(values[0]) is int else torch.float64),
    "array": lambda values: array.array("q" if type(values[0]) is int else "d", values),
}
SEQUENCES = {"betas": [0.5, 0.75], "trust_clip": [0.25, 8.0], "norm_dims": [-2, -1]}
SCALARS = {
    "lr": 0.5,
    "alpha": -2.0,
    "beta": 0.9375,
    "eps": 0.125,
    "trust_eps": 0.5,
    "weight_decay": 0.25,
    "max_grad_norm": 2.0,
    "trust_ratio": False,
    "maximize": True,
    "foreach": True,
    "nonfinite": "propagate",
}
NUMPY = {float: (np.float64, np.float32, np.array), bool: (np.bool_, np.array), str: (np.str_, np.array)}
DTYPES = {
    **{name: getattr(torch, name.removeprefix("torch.")) for name in ("float32", "torch.float64", "bfloat16")},
    "torch.bfloat16": torch.bfloat16,
    "8bit": "8bit",
}
LAYERS = ((2, 3, 4), (3, 4))


def assert_same_group(group, expected):
    """Equal, and of the same types down to what is in tuples."""
    for name in expected.keys() - {"params"}:
        assert group[name] == expected[name], name
        assert type(group[name]) is type(expected[name]), name
        if isinstance(expected[name], tuple):
            assert list(map(type, group[name])) == list(map(type, expected[name])), name


def added(option, value):
    optimizer = ALTO(make_params(((1, 1),), seed=5))
    optimizer.add_param_group({"params": make_params(LAYERS), option: value})
    del optimizer.param_groups[0]
    return optimizer


def written(option, value):
    optimizer = ALTO(make_params(LAYERS))
    optimizer.param_groups[0][option] = value
    return optimizer


def loaded(option, value):
    optimizer = ALTO(make_params(LAYERS))
    state = optimizer.state_dict()
    state["param_groups"][0][option] = value
    optimizer.load_state_dict(state)
    return optimizer


WAYS = {
    "constructor": lambda option, value: ALTO(make_params(LAYERS), **{option: value}),
    "Lamb": lambda option, value: Lamb(make_params(LAYERS), **{option: value}),
    "group": lambda option, value: ALTO([{"params": make_params(LAYERS), option: value}]),
    "added": added,
    "written": written,
    "loaded": loaded,
}


def check(way, option, given, plain, saved=None):
    """It trains as with the plain value, and its state goes through a file that executes nothing."""
    optimizers = [WAYS[way](option, value) for value in (given, plain)]
    for optimizer in optimizers:
        params = optimizer.param_groups[0]["params"]
        take_steps(optimizer, params, make_grads(params, 3))
    one, other = (optimizer.param_groups[0] for optimizer in optimizers)
    assert_same_group(one, other)
    assert_same(one["params"], other["params"])
    assert through_a_file(optimizers[0].state_dict())["param_groups"][0][option] == (plain if saved is None else saved)


@pytest.mark.parametrize(("option", "kind", "way"), pairwise(itertools.product(SEQUENCES, KINDS, WAYS)))
def test_a_list_of_any_kind_is_a_tuple_of_numbers(option, kind, way):
    check(way, option, KINDS[kind](SEQUENCES[option]), tuple(SEQUENCES[option]))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "Lamb"])
@pytest.mark.parametrize("option", SCALARS)
def test_a_number_of_numpy_is_a_number(option, way):
    for make in NUMPY[type(SCALARS[option])]:
        check(way, option, make(SCALARS[option]), SCALARS[option])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_may_be_given_by_its_name_alone_or_in_a_mapping(name, way):
    """As which it is saved."""
    short = str(name).removeprefix("torch.")
    check(way, "state_dtype", name, DTYPES[name], short)
    check(way, "state_dtype", {"exp_avg": name}, {"exp_avg": DTYPES[name]}, {"exp_avg": short})
    check(way, "state_dtype", OmegaConf.create({"exp_avg": name}), {"exp_avg": DTYPES[name]}, {"exp_avg": short})


@pytest.mark.parametrize("make", NUMPY[float])
def test_the_alpha_and_beta_of_e_may_be_numpys(make):
    for build in (EAdamW, lambda params, **own: E(torch.optim.SGD(params, lr=0.1), **own)):
        given = build(make_params(), alpha=make(-2.0), beta=make(0.75))
        assert_same_group(given.param_groups[0], build(make_params(), alpha=-2.0, beta=0.75).param_groups[0])
        through_a_file(given.state_dict())


def test_a_whole_config_of_omegaconf_builds_it_and_groups_too():
    config = OmegaConf.create("""
        lr: 1e-2
        betas: [0.8, 0.9]
        trust_clip: [0, 10.0]
        state_dtype: {exp_avg: bfloat16, explore_ema: torch.float32}
        trust_ratio: decayed
        max_grad_norm: null
    """)
    optimizer = ALTO(make_params(dtype=torch.float32), **config)
    expected = {
        "lr": 0.01,
        "betas": (0.8, 0.9),
        "trust_clip": (0, 10.0),
        "state_dtype": {"exp_avg": "bfloat16", "explore_ema": "float32"},
        "trust_ratio": "decayed",
    }
    assert expected.items() <= optimizer.param_groups[0].items()
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    with pytest.raises(ValueError, match=r"^lr must be a number in \[0, inf\), got '1e-2'$"):
        ALTO(make_params(), lr="1e-2")


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_an_integer_of_numpy_is_a_number(kind):
    assert paper_defaults(kind(100)) == paper_defaults(100)
    given = {"lr": 1, "trust_eps": 0, "weight_decay": 2, "max_grad_norm": 3, "alpha": 0, "beta": 0}
    pairs = {"betas": (0, 0), "trust_clip": (0, 5), "norm_dims": (0,)}
    params = [torch.nn.Parameter(torch.ones(3, 4))]
    numpys = {k: kind(v) for k, v in given.items()} | {k: tuple(map(kind, v)) for k, v in pairs.items()}
    made = ALTO(params, **numpys)
    assert_same_group(made.param_groups[0], ALTO(params, **given, **pairs).param_groups[0])
    through_a_file(made.state_dict())
    model = torch.nn.Linear(3, 4)
    groups = [param_groups(model, one(2), patterns={"weight": {"stacked": one(1)}}) for one in (kind, int)]
    for ours, plain in zip(*groups, strict=True):
        assert_same_group({**ours, "params": 0}, {**plain, "params": 0})


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_numbers_of_numpy_in_a_class_form_and_in_its_schedule_are_pythons_bit_for_bit(kind):
    """Torch's AdamW itself takes no float32 in ``betas``; and 1 - β2 in float32 is another number."""
    trained = []
    for one in (kind, lambda x: float(kind(x))):
        p = torch.nn.Parameter(torch.linspace(1.0, 2.0, 12))
        optimizer = EAdamW([p], lr=one(0.01), betas=(one(0.9), one(0.99)), alpha=one(0.3), beta=one(0.7))
        through_a_file(optimizer.state_dict())
        for k in range(4):
            group = optimizer.param_groups[0]
            group["betas"], group["lr"] = (one(0.8), one(0.98)), one(0.01 * k)
            group["weight_decay"], group["eps"], group["explore_alpha"] = one(0.1), one(1e-7), one(0.1 * k)
            p.grad = torch.linspace(-1.0, 1.0, 12) ** (k + 1)
            optimizer.step()
        trained.append(p.detach().clone())
    assert torch.equal(*trained)
