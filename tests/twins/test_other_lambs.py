"""`Lamb` is the LAMB of other libraries: of those that the tests have, and by formula of those that need CUDA.

``make twins`` does the same with all of them.
"""

from __future__ import annotations

import functools
import itertools
import pickle

import numpy as np
import pytest
import torch
from libraries import TWINS
from ours import difference, moves_of, ours
from regimes import LR, REGIMES, gradients_of, start_of
from support import WAYS, assert_near, make_grads, pairwise, take_steps
from theirs import theirs
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from thalweg import ALTO, Lamb, lamb_defaults, lamb_schedule

LIGHT = ("optax", "pytorch_optimizer", "apex", "deepspeed", "oneflow")
HERE = {twin.name: twin for twin in TWINS if twin.library in LIGHT}
ROWS = [(name, regime, way) for name, regime, way in itertools.product(HERE, REGIMES, WAYS)]

expected = functools.cache(lambda name, regime: theirs(HERE[name].library, HERE[name].options_in(regime), regime))


@pytest.mark.parametrize(("name", "regime", "way"), pairwise(ROWS))
def test_ten_steps_are_theirs(name, regime, way):
    assert difference(ours(HERE[name], regime, WAYS[way]), expected(name, regime)) <= HERE[name].within


@pytest.mark.parametrize("name", HERE)
def test_they_are_not_with_eps_the_place_of_decay_or_the_correction_moved(name):
    twin = HERE[name]
    for moved in moves_of(twin):
        far = max(difference(ours(twin, regime, **moved), expected(name, regime)) for regime in REGIMES)
        assert far > 10.0 * twin.within, moved


def test_alto_takes_the_arguments_too():
    params = [[Parameter(torch.tensor(p)) for p in start_of("decay 0.1")] for _ in range(2)]
    grads = [[torch.tensor(g) for g in row] for row in gradients_of("decay 0.1")]
    arguments = lamb_defaults("timm", weight_decay=0.1)
    take_steps(Lamb(params[0], lr=LR, **arguments), params[0], grads)
    take_steps(ALTO(params[1], lr=LR, **arguments, alpha=0.0), params[1], grads)
    assert_near(*params, 1e-15)


@pytest.mark.parametrize("regime", ["decay 0.1", "norms above 10", "zeros"])
def test_what_pytorch_optimizer_does_with_decay_takes_a_schedule_of_it(regime):
    """As the error says."""
    expected = theirs("pytorch_optimizer", {"weight_decay": 0.1}, regime)
    params = [Parameter(torch.tensor(p)) for p in start_of(regime)]
    optimizer = Lamb(params, lr=LR, **lamb_defaults("pytorch_optimizer"))
    schedule = LambdaLR(optimizer, lamb_schedule("pytorch_optimizer"))
    found = []
    for k, row in enumerate(gradients_of(regime), 1):
        optimizer.param_groups[0]["weight_decay"] = 0.1 * (1 - 0.9**k)
        take_steps(optimizer, params, [[torch.tensor(g) for g in row]])
        schedule.step()
        found.append([p.detach().numpy().copy() for p in params])
    assert difference(found, expected) <= 1e-6


CORRECTED = [  # the factor at steps 1, 10 and 1000
    ("deepspeed", {}, [0.31622776601683794, 0.15318907395118259, 0.7951758140367675]),
    ("colossalai", {"bias_correction": True}, [0.31622776601683794, 0.15318907395118259, 0.7951758140367675]),
    ("torch_optimizer", {"debias": True, "betas": (0.5, 0.75)}, [1.0, 0.9723848653622722, 1.0]),
    ("pytorch_optimizer", {}, [10.0, 1.5353399327876296, 1.0]),
    ("deepspeed", {"bias_correction": False}, [1.0, 1.0, 1.0]),
    ("pytorch_optimizer", {"adam_debias": True}, [1.0, 1.0, 1.0]),
    ("timm", {}, [1.0, 1.0, 1.0]),
]


@pytest.mark.parametrize(("library", "options", "factors"), CORRECTED)
def test_the_schedule_is_what_they_multiply_lr_by(library, options, factors):
    factor = lamb_schedule(library, **options)
    assert [factor(k) for k in (0, 9, 999)] == pytest.approx(factors, rel=1e-12)


def test_the_schedule_is_one_for_optax():
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    factor = lamb_schedule("deepspeed")
    rule = optax.scale_by_schedule(factor)
    one = jax.numpy.ones(1)
    state, found = rule.init(one), []
    for _ in range(3):
        scaled, state = jax.jit(rule.update)(one, state)
        found.append(float(scaled[0]))
    assert found == pytest.approx([factor(k) for k in range(3)], rel=1e-4)  # 1 - β2^k, in float32


def test_the_schedule_is_resumed_and_pickled():
    p = Parameter(torch.ones(2))
    optimizer = Lamb([p], lr=0.1, **lamb_defaults("deepspeed"))
    schedule = LambdaLR(optimizer, pickle.loads(pickle.dumps(lamb_schedule("deepspeed"))))
    for _ in range(5):
        take_steps(optimizer, [p], [[torch.ones(2)]])
        schedule.step()
    again = LambdaLR(Lamb([p], lr=0.1), lamb_schedule("deepspeed"))
    again.load_state_dict(schedule.state_dict())
    again.step()
    schedule.step()
    assert again.get_last_lr() == schedule.get_last_lr() == [0.1 * lamb_schedule("deepspeed")(6)]


REFUSED = [
    ("bitsandbytes", {}, "bitsandbytes's LAMB has no counterpart in Lamb: it is AdamW whose update is capped"),
    ("oneflow", {"weight_decay": 0.1}, "oneflow's weight_decay=0.1 .*: its decay is scaled by the ratio"),
    ("oneflow", {"weight_decay": 0.1, "adam_w_mode": False}, "weight_decay=0.1 .*: decay is added to the gradient"),
    ("pytorch_optimizer", {"weight_decay": 0.1}, r"weight_decay=0.1 .*: it decays by lr, but steps by lr/\(1-β1\^k\)"),
    ("pytorch_optimizer", {"weight_decay": 0.1, "fixed_decay": True}, "fixed_decay=True .*: decay is not multiplied"),
    ("pytorch_optimizer", {"rectify": True}, "rectify=True .*: it is RAdam's"),
    ("pytorch_optimizer", {"grad_averaging": False}, "grad_averaging=False .*: the direction is"),
    ("timm", {"grad_averaging": False}, "grad_averaging=False .*: the direction is"),
    ("timm", {"caution": True}, "caution=True .*: it leaves out what is against the gradient"),
    ("timm", {"decoupled_decay": True, "corrected_weight_decay": True}, "corrected_weight_decay=True .*: decay is by"),
    ("apex", {"adam_w_mode": False}, "adam_w_mode=False .*: decay is added to the gradient"),
    ("apex", {"grad_averaging": False}, "grad_averaging=False .*: the direction is"),
    ("apex", {"max_grad_norm": 0.0}, "max_grad_norm=0.0 .*: it divides the gradients by infinity"),
    ("deepspeed", {"eps_inside_sqrt": True}, "eps_inside_sqrt=True .*: eps is added within the root"),
    ("deepspeed", {"max_grad_norm": 1.0}, "max_grad_norm=1.0 .*: it clips each parameter by a norm"),
    ("fastai", {"wd": 0.1, "decouple_wd": False}, "decouple_wd=False .*: decay is added to the gradient"),
    ("keras", {"clipnorm": 1.0}, "clipnorm=1.0 .*: it clips each gradient to its own norm"),
    ("keras", {"clipvalue": 1.0}, "clipvalue=1.0 .*: it clips the elements"),
    ("keras", {"use_ema": True}, "use_ema=True .*: averaging"),
    ("optax", {"eps_root": 1e-8}, "eps_root=1e-08 .*: it is added within the root"),
    ("tim", {}, "^library must be one of apex, .*, torch_optimizer, got 'tim'; did you mean 'timm'?"),
    (None, {}, "^library must be one of apex, .*, got None$"),
    ("timm", {"weigth_decay": 0.1}, "^an option of timm's LAMB must be one of .*; did you mean 'weight_decay'?"),
    ("timm", {"lr": 0.1}, "^an option of timm's LAMB must be one of bias_correction, betas, .*, got 'lr'"),
    ("timm", {"always_adapt": "yes"}, "^always_adapt must be True or False, got 'yes'"),
    ("paddle", {"lamb_weight_decay": -1}, r"^lamb_weight_decay must be a number in \[0, inf\), got -1"),
    ("apex", {"betas": (0.9, 1.0)}, r"^betas\[1\] must be a number in \[0, 1\), got 1.0"),
]


@pytest.mark.parametrize(("library", "options", "text"), REFUSED)
def test_what_no_argument_expresses_is_one_error_that_says_what_differs(library, options, text):
    for asked in (lamb_defaults, lamb_schedule):
        with pytest.raises(ValueError, match=text):
            asked(library, **options)


def test_an_unknown_eps_is_lambs_to_refuse():
    with pytest.raises(ValueError, match=r"^eps must be a number"):
        Lamb([Parameter(torch.ones(2))], **lamb_defaults("keras", epsilon=0.0))


@pytest.mark.parametrize("library", ["optax", "timm", "fastai", "keras"])
def test_a_layer_of_zeros_moves_by_lr_and_then_grows_by_lr_of_itself(library):
    """The direction stays as it is here, so that the norm grows by all of a step."""
    p = Parameter(torch.zeros(8, 4, dtype=torch.float64))
    options = {"timm": {"always_adapt": True, "weight_decay": 0.0}}.get(library, {})
    optimizer = Lamb([p], lr=0.01, **lamb_defaults(library, **options))
    norms = []
    for _ in range(4):
        take_steps(optimizer, [p], [[torch.ones(8, 4, dtype=torch.float64)]])
        norms.append(float(p.detach().norm()))
    assert norms[0] == pytest.approx(0.01 * 32**0.5, rel=1e-4)  # lr in each entry
    assert np.diff(norms) / norms[:-1] == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(("decoupled", "shrinks"), [(False, 0.01), (True, 0.01 * 0.1)])
def test_what_has_no_gradient_shrinks_by_lr_unless_decay_is_decoupled(decoupled, shrinks):
    p = Parameter(make_grads([torch.zeros(8, 4, dtype=torch.float64)], 1)[0][0])
    arguments = lamb_defaults("timm", weight_decay=0.1, decoupled_decay=decoupled)
    before = p.detach().clone()
    take_steps(Lamb([p], lr=0.01, **arguments), [p], [[torch.zeros_like(p)]])
    assert_near([p], [before * (1.0 - shrinks)], 1e-15)


def test_rows_without_a_gradient_shrink_thirty_times_faster_than_by_decay_unless_it_is_decoupled():
    """In an embedding of 1000 x 64 with one row in use, by the ratio of the whole."""
    shrinks = {}
    for decoupled in (False, True):
        (start,) = make_grads([torch.zeros(1000, 64, dtype=torch.float64)], 1)[0]
        p, g = Parameter(start.clone()), torch.zeros_like(start)
        g[0] = start[1]
        arguments = lamb_defaults("timm", weight_decay=0.01, decoupled_decay=decoupled)
        take_steps(Lamb([p], lr=0.01, **arguments), [p], [[g]])
        shrinks[decoupled] = 1.0 - float(p.detach()[1:].norm() / start[1:].norm())
    assert shrinks[True] == pytest.approx(0.01 * 0.01, rel=1e-9)
    assert shrinks[False] == pytest.approx(30 * 0.01 * 0.01, rel=0.05)
