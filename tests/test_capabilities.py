"""The table of capabilities is complete, and true."""

from __future__ import annotations

import inspect

import pytest
import torch
from capabilities import TABLE
from support import assert_near, assert_same, make_grads, make_params, state_of, take_steps

import thalweg
from thalweg import ALTO, E, EAdamW, Lamb

STEPS = 6


def test_the_table_covers_every_public_optimizer():
    public = {getattr(thalweg, name) for name in thalweg.__all__}
    optimizers = {value for value in public if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)}
    assert {entry.constructor for entry in TABLE} == optimizers


def test_the_table_covers_every_argument_of_the_constructor(entry):
    arguments = inspect.signature(entry.constructor).parameters
    covered = {option.name for option in entry.options} | set(entry.arguments)
    covered |= {name for bad in entry.invalid if "differentiable" in bad.kwargs for name in bad.kwargs}
    assert set(arguments) <= covered


def test_the_tables_values_are_not_the_defaults(entry):
    for name, parameter in inspect.signature(entry.constructor).parameters.items():
        for option in entry.options:
            if option.name == name and not isinstance(option.value, torch.Tensor):
                assert option.value != parameter.default, name


@pytest.mark.where(test=lambda entry, option: option is not None)
def test_every_option_has_its_effect_and_no_other(entry, option):
    """An ignored option is a bug."""
    dtype = torch.float64 if option.effect != "dtype" else torch.float32
    params, others = make_params(entry.shapes, dtype), make_params(entry.shapes, dtype)
    grads = make_grads(params, STEPS)
    optimizer = entry.build(params, **option.kwargs)
    take_steps(optimizer, params, grads)
    take_steps(entry.build(others, **option.also), others, grads)
    if option.effect == "update":
        assert all(not torch.equal(a, b) for a, b in zip(params, others, strict=True))
    elif option.effect == "how":
        assert_near(params, others, option.tolerance)
    elif option.effect == "dtype":
        buffers = [value for (_, key), value in state_of(optimizer).items() if key not in entry.counters]
        assert buffers
        assert {buffer.dtype for buffer in buffers} == {option.value}
        assert_near(params, others, max(option.tolerance, 1e-6))


def in_a_group(value):
    """Dtypes are kept by their names, so that a group prints as JSON."""
    if isinstance(value, dict):
        return {name: in_a_group(x) for name, x in value.items()}
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def test_the_group_holds_every_option(entry):
    for option in entry.options:
        if option.effect == "cuda" and not torch.cuda.is_available():
            continue
        group = entry.build(make_params(entry.shapes), **option.kwargs).param_groups[0]
        held = group[option.key or option.name]
        assert held is option.value or held == in_a_group(option.value), option


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_state_has_the_tables_keys_and_dtypes(entry, dtype):
    params = make_params(entry.shapes, dtype)
    optimizer = entry.build(params)
    take_steps(optimizer, params, make_grads(params, 2))
    wide = torch.promote_types(dtype, torch.float32)
    for p in params:
        state = optimizer.state[p]
        assert set(entry.state) == {key for key, value in state.items() if value is not None}
        for key in entry.state:
            expected = torch.float32 if key in entry.counters else wide if key in entry.wide else dtype
            assert state[key].dtype == expected, key
            assert state[key].device.type == "cpu"


def test_bad_arguments_are_refused_with_their_name_value_and_range(entry):
    params = make_params(entry.shapes)
    for invalid in entry.invalid:
        with pytest.raises(invalid.error, match=f"^{invalid.text}$"):
            entry.build(params, **invalid.kwargs)


def checks_groups(entry, invalid):
    """A base checks what it is given on construction alone; E checks its own in every group."""
    return not issubclass(entry.constructor, E) or bool({"alpha", "beta"} & set(invalid.kwargs))


def test_bad_options_of_an_added_group_are_refused_and_nothing_is_added(entry):
    first, second = make_params(entry.shapes), make_params(entry.shapes)
    optimizer = entry.build(first)
    for invalid in (bad for bad in entry.invalid if checks_groups(entry, bad)):
        group, text = dict(invalid.kwargs), invalid.text
        if isinstance(optimizer, E):
            group = {f"explore_{name}": value for name, value in group.items()}
            text = text.replace("alpha", "explore_alpha").replace("beta", "explore_beta")
        with pytest.raises(invalid.error, match=f"^{text}$"):
            optimizer.add_param_group({"params": second, **group})
        assert len(optimizer.param_groups) == 1


@pytest.mark.where(test=lambda entry: entry.complex)
@pytest.mark.parametrize("foreach", [False, True])
def test_complex_parameters_are_pairs_of_real_ones(entry, foreach):
    complex_params = make_params(entry.shapes, torch.complex128)
    real_params = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in complex_params]
    grads = make_grads(complex_params, STEPS)
    take_steps(entry.build(complex_params, foreach=foreach), complex_params, grads)
    as_real = [[torch.view_as_real(g) for g in row] for row in grads]
    take_steps(entry.build(real_params, foreach=foreach), real_params, as_real)
    assert_near([torch.view_as_real(p.detach()) for p in complex_params], real_params, 1e-13)


@pytest.mark.where(test=lambda entry: entry.takes("maximize"))
def test_maximize_descends_on_the_negated_gradients(entry):
    up, down = make_params(entry.shapes), make_params(entry.shapes)
    grads = make_grads(up, STEPS)
    options = {"weight_decay": 0.1}
    if entry.constructor is EAdamW:  # whose base steps itself where it maximizes, and else only if asked for
        options["foreach"] = False
    take_steps(entry.build(up, maximize=True, **options), up, grads)
    take_steps(entry.build(down, **options), down, [[-g for g in row] for row in grads])
    assert_same(up, down)


@pytest.mark.where(test=lambda entry: entry.takes("lr"))
def test_lr_may_be_a_tensor_and_is_read_anew_at_every_step(entry):
    lr = torch.tensor(0.25, dtype=torch.float64)
    tensor, number = make_params(entry.shapes), make_params(entry.shapes)
    grads = make_grads(tensor, 2 * STEPS)
    optimizers = entry.build(tensor, lr=lr, foreach=False), entry.build(number, lr=0.25, foreach=False)
    for optimizer, params in zip(optimizers, (tensor, number), strict=True):
        take_steps(optimizer, params, grads[:STEPS])
    assert lr.item() == 0.25
    lr.fill_(0.125)
    optimizers[1].param_groups[0]["lr"] = 0.125
    for optimizer, params in zip(optimizers, (tensor, number), strict=True):
        take_steps(optimizer, params, grads[STEPS:])
    assert_near(tensor, number, 1e-13)


@pytest.mark.parametrize("trust_ratio", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_lr_may_be_a_tensor_of_one_dimension(optimizer, foreach, trust_ratio):
    tensor, number = make_params(), make_params()
    grads = make_grads(tensor, STEPS)
    options = {"foreach": foreach, "trust_ratio": trust_ratio}
    take_steps(optimizer(tensor, lr=torch.tensor([0.125]), **options), tensor, grads)
    take_steps(optimizer(number, lr=0.125, **options), number, grads)
    assert [p.shape for p in tensor] == [p.shape for p in number]
    assert_near(tensor, number, 1e-13)
