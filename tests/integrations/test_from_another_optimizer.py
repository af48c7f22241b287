"""A folder of torch's distributed checkpoint, written with one optimizer and gone on from with another."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from rank_pool import call_on_ranks
from small_runs import batches, new_model, train
from support import assert_moved, assert_near, assert_same, clone_params
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from thalweg import ALTO, E, EAdamW, Lamb
from thalweg.kernels import eightbit

HALF = 3
OWN = {"alpha": -0.5, "beta": 0.75}
AdamW = torch.optim.AdamW
# from, to, and whether the second has more to keep: b, or options
PAIRS = {
    "AdamW, EAdamW": (AdamW, lambda ps: EAdamW(ps, **OWN), True),
    "AdamW, E": (AdamW, lambda ps: E(AdamW(ps, foreach=True), **OWN), True),
    "AdamW, ALTO": (AdamW, lambda ps: ALTO(ps, **OWN), True),
    "AdamW, Lamb": (AdamW, Lamb, True),
    "Lamb, ALTO": (Lamb, lambda ps: ALTO(ps, **OWN), True),
    "SGD, E": (
        lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.5),
        lambda ps: E(torch.optim.SGD(ps, momentum=0.5), **OWN),
        True,
    ),
    "EAdamW, EAdamW that skips": (EAdamW, lambda ps: EAdamW(ps, **OWN, nonfinite="skip"), False),
    "EAdamW that skips, EAdamW": (lambda ps, lr: EAdamW(ps, lr, nonfinite="skip"), lambda ps: EAdamW(ps, **OWN), False),
    "EAdamW, AdamW": (EAdamW, AdamW, False),
    "ALTO, Lamb": (ALTO, Lamb, False),
    "ALTO, ALTO that rounds": (ALTO, lambda ps: ALTO(ps, stochastic_rounding=True), False),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:alpha="),
]


def saved(build, folder, options, model=None):
    """A run half way, in the folder."""
    model = new_model() if model is None else model
    optimizer = build(model.parameters(), lr=0.0625)
    train(model, optimizer, batches(HALF))
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    return model, optimizer


def gone_on(build, folder, options, *, partly, model=None):
    """As the documentation has it: the weights strictly, the optimizer with what the folder lacks left as it is."""
    if model is None:
        model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10))
    optimizer = build(model.parameters())
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.load({"model": weights}, checkpoint_id=folder)
    planner = DefaultLoadPlanner(allow_partial_load=True) if partly else None
    dcp.load({"optimizer": state}, checkpoint_id=folder, planner=planner)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options)
    return model, optimizer


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_training_goes_on_as_from_a_state_dict_in_memory(pair, flat, tmp_path):
    first, second, more = PAIRS[pair]
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = saved(first, tmp_path, options)
    resumed_model, resumed = gone_on(second, tmp_path, options, partly=more)

    expected_model = copy.deepcopy(model)
    expected = second(expected_model.parameters())
    expected.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same(resumed_model.parameters(), model.parameters())
    assert resumed.param_groups[0]["lr"] == 0.0625
    before = clone_params(model.parameters())
    for m, o in ((resumed_model, resumed), (expected_model, expected)):
        train(m, o, batches(2 * HALF)[HALF:])
    assert_same(resumed_model.parameters(), expected_model.parameters())
    assert_moved(resumed_model.parameters(), before)
    for p, q in zip(resumed_model.parameters(), expected_model.parameters(), strict=True):
        assert resumed.state[p].keys() <= expected.state[q].keys()  # torch's own keep what they do not know
        assert_same(resumed.state[p].values(), (expected.state[q][name] for name in resumed.state[p]))
    groups = [copy.copy(o.param_groups[0]) for o in (resumed, expected)]
    assert {name: x for name, x in groups[0].items() if name != "params"} == {
        name: x for name, x in groups[1].items() if name != "params" and name in groups[0]
    }


@pytest.mark.parametrize("pair", [name for name, (*_, more) in PAIRS.items() if more])
def test_what_the_folder_lacks_stops_a_strict_load(pair, tmp_path):
    """As torch has it: what is documented is needed."""
    first, second, _ = PAIRS[pair]
    saved(first, tmp_path, StateDictOptions())
    with pytest.raises(dcp.CheckpointException, match=r"Missing key in checkpoint state_dict: optimizer\."):
        gone_on(second, tmp_path, StateDictOptions(), partly=False)


class Wide(torch.nn.Module):
    """With a layer large enough for state in 8 bits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    ("before", "after"), [(None, "8bit"), ("8bit", "8bit"), (None, "bfloat16"), ("bfloat16", None)]
)
def test_alto_goes_on_with_its_state_stored_as_the_new_one_says(before, after, tmp_path):
    model, optimizer = saved(lambda ps, lr: ALTO(ps, lr, state_dtype=before), tmp_path, StateDictOptions(), Wide())
    resumed_model, resumed = gone_on(
        lambda ps: ALTO(ps, state_dtype=after), tmp_path, StateDictOptions(), partly=False, model=Wide()
    )
    p, q = model.layers[0].weight, resumed_model.layers[0].weight
    assert_same([q], [p])
    for name in ("exp_avg", "exp_avg_sq", "explore_ema"):
        old, new = optimizer.state[p][name], resumed.state[q][name]
        assert eightbit.is_8bit(new) == (after == "8bit")
        old, new = (eightbit.read(x) if eightbit.is_8bit(x) else x.float() for x in (old, new))
        assert_near([new], [old], 0.04 if before != after else 0.0)
    twin = copy.deepcopy(resumed_model)
    train(resumed_model, resumed, batches(2 * HALF)[HALF:])
    assert_moved(resumed_model.parameters(), twin.parameters())
    assert resumed.state[q]["step"] == 2 * HALF


def sharded(model):
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def go_on_sharded(pair, folder):
    """The gap between two ranks that go on from the folder of two ranks, and one process that never stopped."""
    first, second, more = PAIRS[pair]
    options = StateDictOptions()
    saved(first, folder, options, sharded(new_model()))
    model, optimizer = gone_on(second, folder, options, partly=more, model=sharded(new_model()))
    train(model, optimizer, batches(2 * HALF)[HALF:])

    whole = new_model()
    before = first(whole.parameters(), lr=0.0625)
    train(whole, before, batches(HALF))
    after = second(whole.parameters())
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(whole, after, batches(2 * HALF)[HALF:])
    return max(
        (p.full_tensor() - q).abs().max().item() for p, q in zip(model.parameters(), whole.parameters(), strict=True)
    )


def go_on_from_a_full_state_dict(build):
    """The gap between going on from a full state dict, which has lists for tuples, and not having stopped."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True)
    models = [sharded(new_model()) for _ in range(2)]
    optimizers = [FULL[build](model.parameters()) for model in models]
    train(models[0], optimizers[0], batches(HALF))
    state = copy.deepcopy(get_optimizer_state_dict(models[0], optimizers[0], options=options))
    with torch.no_grad():
        for p, q in zip(models[1].parameters(), models[0].parameters(), strict=True):
            p.copy_(q)
    set_optimizer_state_dict(models[1], optimizers[1], state, options=options)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, batches(2 * HALF)[HALF:])
    gaps = zip(models[0].parameters(), models[1].parameters(), strict=True)
    return max((p.full_tensor() - q.full_tensor()).abs().max().item() for p, q in gaps)


FULL = {
    "EAdamW": lambda ps: EAdamW(ps, lr=0.0625, **OWN),
    "ALTO, bfloat16": lambda ps: ALTO(ps, lr=0.0625, **OWN, state_dtype=torch.bfloat16),
}


def muon_on_one_row():
    """What torch's Muon raises for a sharded weight of one row, alone and in E, and the weight then."""
    found = []
    for around in (lambda base: base, lambda base: E(base, alpha=0.0), lambda base: E(base, **OWN)):
        layer = torch.nn.Linear(8, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        fully_shard(layer)
        optimizer = around(torch.optim.Muon(list(layer.parameters()), lr=0.125))
        layer(torch.ones(2, 8)).square().sum().backward()
        with pytest.raises(RuntimeError) as raised:
            optimizer.step()
        assert not any("explore_ema" in state for state in optimizer.state.values())
        found.append((str(raised.value), layer.weight.full_tensor().tolist()))
    return found


def on_a_rank(rank, folder):
    return (
        {pair: go_on_sharded(pair, f"{folder}/{k}") for k, pair in enumerate(("AdamW, EAdamW", "Lamb, ALTO"))},
        {build: go_on_from_a_full_state_dict(build) for build in FULL},
        muon_on_one_row(),
    )


@pytest.mark.slow
def test_two_ranks_go_on_as_one_process_does_and_e_raises_what_muon_does(tmp_path):
    for folder, full, ((text, weight), *in_e) in call_on_ranks(2, on_a_rank, str(tmp_path)):
        assert all(gap <= 1e-6 for gap in folder.values()), folder
        assert full == dict.fromkeys(FULL, 0.0)
        assert text.startswith("aten.add_.Tensor: in-place operations that require placement changes are not supported")
        assert in_e == [(text, weight), (text, weight)]
