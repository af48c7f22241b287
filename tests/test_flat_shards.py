"""Pieces of flat buffers have lost the layers: what looks beyond an entry refuses them, the rest is right on them."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adadelta, Adafactor, Adam, AdamW, Muon, RMSprop

from thalweg import ALTO, ESGD, E, EAdamW, Lamb, param_groups

REFUSED = r"^parameters must be whole, or sharded each for itself, for {}; one of shape {} is a piece of a flat buffer"
WAY_OUT = r".*fully_shard.*use_orig_params=True.*E around AdamW$"
ALONE = {"trust_ratio": False, "nonfinite": "propagate"}


def refused(by, shape=r"\(12,\)"):
    return pytest.raises(ValueError, match=REFUSED.format(by, shape) + WAY_OUT)


def marked(*shape):
    """As FSDP1 marks what it makes, and what it cuts with use_orig_params=True."""
    p = nn.Parameter(torch.linspace(-1.0, 2.0, 12)[: torch.Size(shape).numel()].reshape(shape))
    p._fsdp_flattened = True
    return p


def partitioned():
    """As ZeRO's third stage leaves a parameter between uses."""
    p = nn.Parameter(torch.empty(0))
    p.ds_id, p.ds_shape, p.ds_numel = 0, torch.Size([3, 4]), 12
    return p


class Lars(SGD):
    """A stand-in for those of other packages."""


class Lion(SGD):
    """One of which nothing is known."""


@pytest.mark.parametrize("make", [ALTO, Lamb])
@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({}, "trust_ratio=True and nonfinite='skip'"),
        ({"nonfinite": "propagate"}, "trust_ratio=True"),
        ({"nonfinite": "propagate", "trust_ratio": "decayed"}, "trust_ratio='decayed'"),
        ({"trust_ratio": False}, "nonfinite='skip'"),
        ({"trust_ratio": False, "nonfinite": "raise"}, "nonfinite='raise'"),
        ({**ALONE, "max_grad_norm": 1.0}, r"max_grad_norm=1\.0"),
    ],
    ids=str,
)
def test_lamb_refuses_flat_shards_at_construction_for_what_looks_beyond_an_entry(make, options, by):
    with refused(by):
        make([marked(12)], **options)
    whole = nn.Parameter(torch.ones(3, 4))
    optimizer = make([whole], **options)
    with refused(by):
        optimizer.add_param_group({"params": [marked(12)]})
    assert [group["params"] for group in optimizer.param_groups] == [[whole]]
    make([marked(12)], **ALONE)
    make([marked(12)], **{**ALONE, "trust_ratio": "decayed", "weight_decay": 0.0})


def test_all_marks_are_known():
    for p, shape in ((marked(12), r"\(12,\)"), (marked(0), r"\(0,\)"), (partitioned(), r"\(0,\)")):
        with refused("trust_ratio=True.*", shape):
            ALTO([p])
    gathered = partitioned()
    gathered.data = torch.ones(3, 4)
    ALTO([gathered])


def cut_in_place(model):
    for p in model.parameters():
        p.data = p.data.flatten()[:5]
        p._fsdp_flattened = True


def flattened(optimizer, *, one=True):
    """As DeepSpeed and Megatron do: flat buffers take the place of the parameters."""
    for group in optimizer.param_groups:
        pieces = [p.detach().flatten() for p in group["params"]]
        group["params"] = [nn.Parameter(torch.cat(pieces))] if one else list(map(nn.Parameter, pieces))


def give_gradients(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)


def values(optimizer):
    return [p.tolist() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("make", [ALTO, Lamb])
@pytest.mark.parametrize("how", ["cut", "one buffer", "many pieces"])
def test_what_becomes_flat_after_construction_is_refused_at_the_first_step(make, how):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = make(param_groups(model), lr=0.1)
    if how == "cut":
        cut_in_place(model)
    else:
        flattened(optimizer, one=how == "one buffer")
    give_gradients(optimizer)
    before = values(optimizer)
    with refused("trust_ratio=True and nonfinite='skip'", r"\(\d+,\)"):
        optimizer.step()
    with refused("trust_ratio=True and nonfinite='skip'", r"\(\d+,\)"):
        optimizer.init_state()
    assert values(optimizer) == before
    assert not optimizer.state


def test_cut_without_a_mark_is_seen_by_the_axes():
    p = nn.Parameter(torch.ones(3, 4))
    optimizer = Lamb([p])
    p.data = torch.ones(12)
    p.grad = torch.ones(12)
    with refused("trust_ratio=True and nonfinite='skip'"):
        optimizer.step()


def test_a_buffer_at_the_address_of_a_parameter_that_is_gone_is_not_that_parameter():
    whole = nn.Parameter(torch.ones(3, 4))
    optimizer = Lamb([whole, gone := nn.Parameter(torch.ones(3))])
    buffer = nn.Parameter(torch.ones(15))
    optimizer._given[id(buffer)] = optimizer._given.pop(id(gone))
    optimizer.param_groups[0]["params"] = [buffer]
    give_gradients(optimizer)
    with refused("trust_ratio=True and nonfinite='skip'", r"\(15,\)"):
        optimizer.step()


def test_other_parameters_may_take_the_place_of_what_was_given():
    model = nn.Linear(4, 3)
    optimizer = ALTO(param_groups(model))
    for group in optimizer.param_groups:
        group["params"] = [nn.Parameter(p.detach().clone()) for p in group["params"]]
    give_gradients(optimizer)
    optimizer.step()
    biases = ALTO([nn.Parameter(torch.ones(3))])
    biases.param_groups[0]["params"] = [nn.Parameter(torch.ones(5))]
    give_gradients(biases)
    biases.step()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_steps_what_it_has(again):
    optimizer = again(ALTO(param_groups(nn.Linear(4, 3))))
    give_gradients(optimizer)
    optimizer.step()
    assert "_given" not in optimizer.__getstate__()


def test_the_update_of_each_entry_by_itself_is_that_of_the_whole_parameters():
    for make in (
        lambda ps: Lamb(ps, lr=0.1, **ALONE),
        lambda ps: ALTO(ps, lr=0.1, **ALONE),
        lambda ps: EAdamW(ps, lr=0.1),
        lambda ps: ESGD(ps, lr=0.1, momentum=0.9),
        lambda ps: E(RMSprop(ps, lr=0.1)),
    ):
        whole, flat = nn.Parameter(marked(12).detach().reshape(3, 4).clone()), marked(12)
        optimizers = make([whole]), make([flat])
        for k in range(4):
            grad = torch.linspace(-1.0, 1.0, 12) ** (k + 1)
            for p, optimizer in zip((whole, flat), optimizers, strict=True):
                p.grad = grad.reshape(p.shape).clone()
                optimizer.step()
        assert torch.equal(whole.flatten(), flat)


BASES = {
    "Muon": lambda ps: Muon(ps, lr=0.1),
    "Adafactor": lambda ps: Adafactor(ps),
    "Lars": lambda ps: Lars(ps, lr=0.1),
}


@pytest.mark.parametrize("name", BASES)
def test_e_refuses_flat_shards_around_what_looks_beyond_an_entry(name):
    p = marked(3, 4)
    base = BASES[name]([p])
    with refused(f"E around {name}", r"\(3, 4\)"):
        E(base)
    assert "explore_alpha" not in base.defaults
    assert "explore_alpha" not in base.param_groups[0]

    whole = nn.Parameter(torch.ones(3, 4))
    optimizer = E(BASES[name]([whole]))
    with refused(f"E around {name}", r"\(3, 4\)"):
        optimizer.add_param_group({"params": [marked(3, 4)]})
    assert len(optimizer.param_groups) == 1
    whole.grad = torch.ones(3, 4)
    optimizer.step()

    for mark in (True, False):
        optimizer = E(BASES[name]([late := nn.Parameter(torch.ones(3, 4))]))
        if mark:
            late._fsdp_flattened = True
        else:
            flattened(optimizer)
        give_gradients(optimizer)
        with refused(f"E around {name}", r"\((3, 4|12,)\)"):
            optimizer.step()
        assert not optimizer.state


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_e_judges_no_gradients_of_flat_shards(nonfinite):
    with refused(f"nonfinite='{nonfinite}'"):
        E(SGD([marked(12)], lr=0.1), nonfinite=nonfinite)
    p = nn.Parameter(torch.ones(12))
    optimizer = E(SGD([p], lr=0.1), nonfinite=nonfinite)
    p._fsdp_flattened = True
    p.grad = torch.ones(12)
    with refused(f"nonfinite='{nonfinite}'"):
        optimizer.step()
    assert p.tolist() == [1.0] * 12


def test_e_around_lamb_asks_lamb():
    with refused("trust_ratio=True and nonfinite='skip'"):
        E(Lamb([marked(12)]))
    E(Lamb([marked(12)], **ALONE))


def test_of_a_base_that_nobody_knows_it_is_said():
    p = marked(12)
    with pytest.warns(UserWarning, match=r"^parameters are pieces of flat buffers.* the steps of Lion are right if"):
        optimizer = E(Lion([p], lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for base in (SGD([p], lr=0.1), Adam([p]), AdamW([p]), Adadelta([p]), RMSprop([p])):
            E(base)
        E(Lion([nn.Parameter(torch.ones(3))], lr=0.1))
    p.grad = torch.ones(12)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.step()
    assert len(told) == 1  # at the first step
