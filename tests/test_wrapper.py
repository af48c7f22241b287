"""E is a torch optimizer that shares everything with its base."""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import pytest
import torch
from pytorch_optimizer import ScheduleFreeAdamW
from support import (
    assert_near,
    assert_same,
    assert_same_state,
    clone_params,
    make_grads,
    make_params,
    state_of,
    take_steps,
    through_a_file,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from thalweg import ALTO, ESGD, E, EAdam, EAdamW, Lamb

STEPS = 4


def assert_shared(optimizer):
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults is optimizer.base.defaults


def test_e_is_an_optimizer_that_shares_groups_state_and_defaults_before_and_after_load():
    params = make_params()
    base = torch.optim.Adam(params)
    optimizer = E(base)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.base is base
    assert_shared(optimizer)
    take_steps(optimizer, params, make_grads(params, 1))
    for state_dict in (optimizer.state_dict(), through_a_file(optimizer.state_dict())):
        optimizer.load_state_dict(state_dict)
        assert_shared(optimizer)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert_shared(twin)
        assert twin.param_groups is not optimizer.param_groups
    base.load_state_dict(base.state_dict())
    assert_shared(optimizer)


def test_groups_state_and_defaults_set_on_e_are_set_on_the_base():
    optimizer = ESGD(make_params(), lr=0.1)
    for name in ("param_groups", "state", "defaults"):
        value = copy.copy(getattr(optimizer, name))
        setattr(optimizer, name, value)
        assert getattr(optimizer.base, name) is value


def test_the_state_dict_is_flat_and_the_bases_own_plus_four_names():
    params = make_params()
    plain, wrapped = torch.optim.AdamW(clone_params(params)), EAdamW(params)
    for optimizer in (plain, wrapped):
        take_steps(optimizer, optimizer.param_groups[0]["params"], make_grads(params, 1))
    theirs, ours = plain.state_dict(), wrapped.state_dict()
    assert set(ours) == set(theirs) == {"state", "param_groups"}
    own = set(ours["param_groups"][0]) - set(theirs["param_groups"][0])
    assert own == {"explore_alpha", "explore_beta", "explore_skipped"}
    for i in theirs["state"]:
        assert set(ours["state"][i]) - set(theirs["state"][i]) == {"explore_ema"}
        assert set(theirs["state"][i]) <= set(ours["state"][i])


def test_the_base_alone_goes_on_from_the_state_of_e():
    params = make_params()
    optimizer = EAdamW(params, lr=0.01, alpha=0.0)
    grads = make_grads(params, 2 * STEPS)
    take_steps(optimizer, params, grads[:STEPS])
    alone = clone_params(params)
    base = torch.optim.AdamW(alone)
    base.load_state_dict(through_a_file(optimizer.state_dict()))
    take_steps(base, alone, grads[STEPS:])
    take_steps(optimizer, params, grads[STEPS:])
    assert_same(alone, params)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("build", [EAdamW, ESGD, ALTO, Lamb, lambda ps: E(torch.optim.NAdam(ps))])
def test_torchs_distributed_checkpoint_saves_and_loads_the_state(build, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def start():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        return model, build(model.parameters())

    model, optimizer = start()
    params = list(model.parameters())
    grads = make_grads(params, 2 * STEPS)
    take_steps(optimizer, params, grads[:STEPS])
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))

    other, resumed = start()
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, saved, options=options)
    assert_same_state(resumed, optimizer)
    take_steps(optimizer, params, grads[STEPS:])
    take_steps(resumed, list(other.parameters()), grads[STEPS:])
    assert_same(other.parameters(), model.parameters())


class Lazy(torch.optim.Optimizer):
    """Momentum, initialised as most optimizers outside torch do it."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "E runs the closure, not the base"
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["velocity"] = torch.zeros_like(p)
                state["velocity"].mul_(0.5).add_(p.grad)
                p.sub_(state["velocity"], alpha=group["lr"])


def test_a_base_that_initialises_lazily_where_its_state_is_empty_keeps_working():
    params, expected = make_params(), make_params()
    grads = make_grads(params, STEPS)
    optimizer = E(Lazy(params, lr=0.1), alpha=1.5, beta=0.75)
    for row in grads:
        for p, g in zip(params, row, strict=True):
            p.grad = g
        optimizer.step(lambda: 0.0)
    take_steps(ESGD(expected, lr=0.1, momentum=0.5, alpha=1.5, beta=0.75), expected, grads)
    assert_near(params, expected, 1e-14)


@pytest.mark.parametrize("wrapped", [EAdam, EAdamW, ESGD])
def test_the_class_form_is_the_instance_form(wrapped):
    base = wrapped._base_class
    params, expected = make_params(), make_params()
    grads = make_grads(params, STEPS)
    take_steps(wrapped(params, lr=0.05, alpha=0.5, beta=0.25), params, grads)
    take_steps(E(base(expected, lr=0.05), alpha=0.5, beta=0.25), expected, grads)
    assert_same(params, expected)
    assert wrapped is E.of(base)
    assert issubclass(wrapped, E)
    assert wrapped.__name__ == f"E{base.__name__}"
    assert repr(wrapped(params)).startswith(f"E({base.__name__} (")


@pytest.mark.parametrize("cls", [EAdam, EAdamW, ESGD, ALTO, Lamb])
def test_json_able_arguments_build_the_optimizer(cls):
    """As the HF Trainer, Lightning's CLI and torchtitan do."""
    signature = inspect.signature(cls)
    defaults = {
        name: p.default
        for name, p in signature.parameters.items()
        if p.default is not inspect.Parameter.empty and p.default is not None
    }
    kwargs = json.loads(json.dumps(defaults))
    params, expected = make_params(), make_params()
    grads = make_grads(params, STEPS)
    take_steps(cls(params, **kwargs), params, grads)
    take_steps(cls(expected), expected, grads)
    assert_same(params, expected)


@pytest.mark.parametrize("cls", [EAdam, EAdamW, ESGD, E.of(torch.optim.RMSprop), E.of(torch.optim.ASGD)])
def test_the_signature_is_what_the_constructor_takes(cls):
    signature = inspect.signature(cls)
    base = inspect.signature(cls._base_class)
    added = [name for name in signature.parameters if name not in base.parameters]
    clash = {"alpha", "beta"} & set(base.parameters)
    of_groups = ["explore_alpha", "explore_beta"] if clash else ["alpha", "beta"]
    assert added == [*of_groups, "nonfinite", "reevaluates", "process_group"]
    for name, parameter in base.parameters.items():
        assert signature.parameters[name] == parameter
    for name, default in zip(added, (-5.0, 0.99, "propagate", None, None), strict=True):
        assert signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert signature.parameters[name].default == default
    optimizer = cls(make_params())
    for name, group_name in zip(added[:2], ("explore_alpha", "explore_beta"), strict=True):
        assert optimizer.param_groups[0][group_name] == signature.parameters[name].default
    with pytest.raises(TypeError, match="unexpected keyword argument 'explore'"):
        cls(make_params(), explore=1.0)


@pytest.mark.parametrize("base", [torch.optim.RMSprop, torch.optim.ASGD])
def test_an_alpha_of_the_base_stays_the_bases(base):
    params, expected = make_params(), make_params()
    grads = make_grads(params, STEPS)
    optimizer = E.of(base)(params, alpha=0.5, explore_alpha=1.5, explore_beta=0.75)
    take_steps(optimizer, params, grads)
    take_steps(E(base(expected, alpha=0.5), alpha=1.5, beta=0.75), expected, grads)
    assert_same(params, expected)
    group = optimizer.param_groups[0]
    assert (group["alpha"], group["explore_alpha"], group["explore_beta"]) == (0.5, 1.5, 0.75)


def test_a_scheduler_that_cycles_momentum_finds_it_through_e():
    params = make_params()
    optimizer = EAdamW(params, lr=0.1)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=4, base_momentum=0.5, max_momentum=0.75)
    assert optimizer.base.param_groups[0]["betas"][0] == 0.75
    take_steps(optimizer, params, make_grads(params, 1))
    scheduler.step()
    assert 0.5 <= optimizer.base.param_groups[0]["betas"][0] < 0.75
    ReduceLROnPlateau(optimizer)


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"^optimizer must be a torch\.optim\.Optimizer, got list$"):
        E(make_params())
    text = r"^base must be a subclass of torch\.optim\.Optimizer without E, got "
    for base in (torch.nn.Linear, "Adam", EAdamW, E):
        with pytest.raises(TypeError, match=text):
            E.of(base)


def test_a_refused_base_is_left_as_it_was():
    base = torch.optim.SGD(make_params(), lr=0.1)
    defaults, keys = dict(base.defaults), set(base.param_groups[0])
    for kwargs in ({"alpha": 100.0}, {"beta": 1.0}):
        with pytest.raises(ValueError, match="must be a number in"):
            E(base, **kwargs)
    assert base.defaults == defaults
    assert set(base.param_groups[0]) == keys


@pytest.mark.parametrize(
    "build",
    [
        EAdamW,
        lambda params: E(torch.optim.Adagrad(params, lr=torch.tensor(0.1))),
        lambda params: E(torch.optim.LBFGS(params)),
    ],
)
def test_init_state_makes_room_for_a_checkpoint_and_changes_nothing_else(build):
    params = make_params()
    params[1].requires_grad_(False)
    params[0].grad = grad = torch.ones_like(params[0])
    optimizer, start = build(params), [p.detach().clone() for p in params]
    groups = [dict(group) for group in optimizer.param_groups]
    optimizer.init_state()
    assert_same(params, start)
    assert params[0].grad is grad
    assert params[2].grad is None
    assert [dict(group) for group in optimizer.param_groups] == groups
    assert ["explore_ema" in optimizer.state.get(p, {}) for p in params] == [True, False, True, True]
    state = optimizer.state_dict()
    optimizer.init_state()  # again: nothing
    assert str(optimizer.state_dict()) == str(state)


@pytest.mark.parametrize(
    "build",
    [
        lambda params: EAdamW(params, alpha=0.0),
        lambda params: torch.optim.AdamW(params),
        lambda params: E(torch.optim.Rprop(params), alpha=0.0),
        lambda params: E(ScheduleFreeAdamW(params), alpha=0.0),
    ],
    ids=["E at zero", "AdamW before E", "E of Rprop at zero", "E of Schedule-Free at zero"],
)
def test_init_state_leaves_a_trained_state_as_it_is(build):
    params = make_params()
    optimizer = build(params)
    if hasattr(optimizer, "train"):
        optimizer.train()
    take_steps(optimizer, params, make_grads(params, STEPS))
    start, state = clone_params(params), state_of(optimizer)
    wrapped = optimizer if isinstance(optimizer, E) else E(optimizer)
    wrapped.init_state()
    assert_same(params, start)
    after = state_of(wrapped)
    assert {key for _, key in after.keys() - state.keys()} == (set() if wrapped is optimizer else {"explore_ema"})
    assert not any(after[key].any() for key in after.keys() - state.keys())
    assert_same([after[key] for key in state], list(state.values()))
