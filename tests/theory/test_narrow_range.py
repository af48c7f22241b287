"""One warning, at construction, where a setting shrinks the stable range more than tenfold."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from theory_settings import Setting, random_settings
from torch.nn import Parameter

from thalweg import ALTO, ESGD, E, EAdam, EAdamW, Lamb
from thalweg.theory import stability_limit
from thalweg.theory.warning import Filter, enough_alpha, is_narrow, warn_if_narrow

SGD, RMSprop, NAdam = torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam
NARROW = {"alpha": -3.0, "beta": 0.75}
TEXT = (
    "alpha=-3 with beta=0.75 in front of momentum 0.9 is stable only up to learning rate x curvature = 0.481, 78.9 "
    "times less than without E (38): expect divergence, or to need a smaller learning rate. At this beta, alpha of at "
    "least -1.18 keeps a tenth of the range; `thalweg theory --alpha -3 --beta 0.75 --momentum 0.9` says more"
)


def params() -> list[Parameter]:
    return [Parameter(torch.ones(2))]


def said(build) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    assert {(w.category, w.filename) for w in caught} <= {(UserWarning, __file__)}  # the line that builds it
    return [str(w.message) for w in caught]


KNOWN = {
    "ALTO": lambda: ALTO(params(), **NARROW),
    "ALTO, betas": lambda: ALTO(params(), betas=(0.9, 0.5), **NARROW),
    "EAdam": lambda: EAdam(params(), **NARROW),
    "EAdamW": lambda: EAdamW(params(), betas=(0.9, 0.5), **NARROW),
    "EAdamW, tensor betas": lambda: EAdamW(
        params(), betas=tuple(torch.tensor([0.9, 0.99], dtype=torch.float64)), **NARROW
    ),
    "E(Adam)": lambda: E(torch.optim.Adam(params()), -3.0, 0.75),
    "E(RAdam)": lambda: E(torch.optim.RAdam(params()), -3.0, 0.75),
    "E(Adamax)": lambda: E(torch.optim.Adamax(params()), -3.0, 0.75),
    "E(Lamb)": lambda: E(Lamb(params()), -3.0, 0.75),
    "ESGD": lambda: ESGD(params(), momentum=0.9, **NARROW),
    "ESGD, dampening": lambda: ESGD(params(), momentum=0.9, dampening=0.5, **NARROW),
    "E(RMSprop)": lambda: E(RMSprop(params(), momentum=0.9), -3.0, 0.75),
    "two such groups": lambda: ESGD([{"params": params()}, {"params": params()}], momentum=0.9, **NARROW),
    "the second group": lambda: ALTO([{"params": params(), "alpha": 0.5}, {"params": params()}], **NARROW),
    "a group's own alpha": lambda: EAdamW([{"params": params(), "explore_alpha": -3.0}], alpha=0.5, beta=0.75),
    "a group's own momentum": lambda: ESGD([{"params": params(), "momentum": 0.9}], **NARROW),
}


@pytest.mark.parametrize("name", KNOWN)
def test_one_warning_with_the_numbers_and_what_to_do(name):
    assert said(KNOWN[name]) == [TEXT]


@pytest.mark.parametrize(
    "build",
    [lambda: ESGD(params(), momentum=0.9, nesterov=True, **NARROW), lambda: E(NAdam(params()), -3.0, 0.75)],
    ids=["ESGD", "E(NAdam)"],
)
def test_nesterov(build):
    limit, alone = (stability_limit(a, 0.75, momentum=0.9, nesterov=True) for a in (-3.0, 0.0))
    (text,) = said(build)
    assert f"= {limit:.3g}, {alone / limit:.3g} times less than without E ({alone:.3g})" in text
    assert "--momentum 0.9 --nesterov`" in text


@pytest.mark.parametrize(
    "build",
    [
        lambda: ALTO(params()),
        lambda: ALTO(params(), alpha=0.5, beta=0.01),
        lambda: ALTO(params(), alpha=-5.0, beta=0.9),  # exactly tenfold
        lambda: ALTO(params(), betas=(0.0, 0.9), **NARROW),
        lambda: ALTO(params(), alpha=99.0, beta=0.99),
        lambda: ESGD(params(), **NARROW),
        lambda: E(torch.optim.Adagrad(params()), -3.0, 0.75),
        lambda: E(RMSprop(params()), -3.0, 0.75),
        lambda: E(torch.optim.LBFGS(params()), -3.0, 0.75),
        lambda: ESGD([{"params": params(), "momentum": 0.0}], momentum=0.9, **NARROW),
    ],
)
def test_no_warning(build):
    assert said(build) == []


def test_ten_times_is_where_it_begins():
    """The α that is recommended does not warn, and is the last of three digits that does not."""
    for alpha, warned in ((-1.18, 0), (-1.19, 1)):
        assert len(said(lambda a=alpha: ALTO(params(), alpha=a, beta=0.75))) == warned


def test_what_comes_later_does_not_warn_again():
    with pytest.warns(UserWarning, match="stable only up to"):
        optimizer = ALTO(params(), **NARROW)
    optimizer.add_param_group({"params": params()})
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def test_the_optax_twin_warns_too():
    from thalweg.jax import alto

    assert said(lambda: alto(0.1, **NARROW)) == [TEXT]
    assert said(lambda: alto(0.1)) == []
    assert said(lambda: alto(0.1, alpha=lambda step: -3.0, beta=0.75)) == []


def test_it_costs_next_to_nothing():
    optimizer = EAdamW([{"params": params()} for _ in range(100)])
    from thalweg.optim import stable_range

    best = min(_timed(lambda: stable_range.warn(optimizer.base)) for _ in range(5))
    assert best < 0.005  # for 100 groups


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("nesterov", [False, True])
def test_any_narrow_setting_has_an_alpha_to_recommend(nesterov):
    settings = random_settings(1000, seed=5, nesterov=nesterov, momentum=(0.01, 0.999), horizon=20.0)
    narrow = [s for s in settings if is_narrow(stability_limit(s.alpha, s.beta, **s.base), alone(s))]
    assert len(narrow) >= 10
    for s in narrow:
        enough = enough_alpha(s.alpha, s.beta, **s.base)
        assert s.alpha < enough < 0.0, s
        assert not is_narrow(stability_limit(enough, s.beta, **s.base), alone(s)), s
        assert len(said(lambda s=s: warn_if_narrow([Filter(s.alpha, s.beta, s.momentum, s.nesterov)]))) == 1


def test_next_to_a_momentum_of_1_there_is_none_to_recommend():
    momentum = 0.9999999999999998
    assert enough_alpha(-0.75, 0.0, momentum=momentum, nesterov=False) == 0.0
    (text,) = said(lambda: warn_if_narrow([Filter(-0.75, 0.0, momentum, False)]))
    assert (
        "or to need a smaller learning rate. At this momentum no alpha < 0 keeps a tenth of the range; `thalweg" in text
    )


def alone(s: Setting) -> float:
    return stability_limit(0.0, 0.0, **s.base)
