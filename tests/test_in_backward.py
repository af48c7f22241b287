"""Stepping inside backward equals the ordinary loop, and holds few gradients."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from support import assert_moved, assert_same, assert_same_state, clone_params, state_of, through_a_file
from test_backends import WAYS, peak
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from thalweg import ALTO, E, EAdamW, Lamb, param_groups, step_in_backward
from thalweg.optim.exploration import BY_PARAMETER

STEPS = 6
WIDTH = 128


class Net(nn.Module):
    """An embedding tied to the head, a norm, layers small and larger than an eighth of a piece, and one never used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.wide = nn.Linear(WIDTH, 2100)
        self.narrow = nn.Linear(2100, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.unused = nn.Linear(3, 4)
        self.head = nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(self.norm(x + self.narrow(self.wide(x).relu())))


def loss_of(model, k):
    tokens = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(k))
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.roll(1, 1).flatten())


def train(build, in_backward, steps=STEPS, dtype=torch.float32, by_layer=False, spoil=None):
    """A model after some steps of a scheduled loop, and its optimizer."""
    model = Net().to(dtype)
    optimizer = build(model)
    if in_backward:
        step_in_backward(optimizer, nonfinite_by_layer=by_layer)
    scheduler = SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, 1.0, 2), CosineAnnealingLR(optimizer, steps)], milestones=[2]
    )
    for k in range(steps):
        loss = loss_of(model, k)
        if spoil is not None:
            spoil(model, k)
        loss.backward()
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        assert all(g is None for g in grads) == in_backward
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model, optimizer


def assert_same_training(build, **options):
    (model, optimizer), (expected, reference) = (train(build, way, **options) for way in (True, False))
    assert_same(model.parameters(), expected.parameters())
    assert_same_state(optimizer, reference)
    assert optimizer.state_dict()["param_groups"] == reference.state_dict()["param_groups"]
    start = Net().to(next(model.parameters()).dtype)
    held = {p for group in optimizer.param_groups for p in group["params"]} - set(model.unused.parameters())
    pairs = [(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True) if p in held]
    assert len(pairs) > 4
    assert_moved(*zip(*pairs, strict=True))
    return model, optimizer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_alto_and_lamb_equal_the_ordinary_loop(optimizer, way):
    def build(model):
        options = {"lr": 0.003, "weight_decay": 0.3, "trust_clip": (0.1, 5.0)}
        groups = param_groups(model, weight_decay=0.1, patterns={"wide.*": options})
        return optimizer(groups, lr=0.01, nonfinite="propagate", **WAYS[way])

    _, made = assert_same_training(build)
    assert len(made.param_groups) > 2


@pytest.mark.parametrize("base", BY_PARAMETER)
def test_e_around_a_base_equals_the_ordinary_loop(base):
    def build(model):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        groups = [{"params": matrices[:2]}, {"params": matrices[2:], "lr": 0.003, "explore_alpha": -1.0}]
        if base is not torch.optim.Muon:  # which takes matrices alone
            groups.append({"params": others, "explore_alpha": 0.0})
        return E(base(groups, lr=0.01), alpha=0.5, beta=0.5)

    assert_same_training(build)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"amsgrad": True}], ids=str)
def test_e_around_a_fused_base_equals_the_ordinary_loop(options):
    assert_same_training(lambda model: EAdamW(model.parameters(), lr=0.01, alpha=0.5, beta=0.5, **options))


def test_stochastic_rounding_draws_the_same_bits():
    def build(model):
        return ALTO(param_groups(model), lr=0.01, nonfinite="propagate", stochastic_rounding=True)

    _, optimizer = assert_same_training(build, dtype=torch.bfloat16)
    assert [group["rounding_step"] for group in optimizer.param_groups] == [STEPS] * len(optimizer.param_groups)
    assert all("first_index" not in group for group in optimizer.param_groups)


def test_a_closure_does_its_backward_within_step():
    models = Net(), Net()
    optimizers = [ALTO(model.parameters(), lr=0.01, nonfinite="propagate") for model in models]
    step_in_backward(optimizers[0])
    for k in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):

            def closure(model=model, optimizer=optimizer, k=k):
                optimizer.zero_grad()
                loss = loss_of(model, k)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert_same(models[0].parameters(), models[1].parameters())


def test_tied_weights_take_one_step():
    model, optimizer = train(lambda m: Lamb(m.parameters(), lr=0.01, nonfinite="propagate"), True, steps=3)
    assert optimizer.state[model.head.weight]["step"] == 3
    assert optimizer.state[model.unused.weight]["step"] == 0


def deep(depth, width):
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))


@pytest.mark.parametrize("build", [lambda ps: ALTO(ps, nonfinite="propagate"), lambda ps: EAdamW(ps, fused=True)])
def test_one_gradient_exists_at_a_time(build):
    model = deep(10, 300)
    alive = []
    for p in model.parameters():  # before ours, so called first
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    optimizer = build(model.parameters())
    step_in_backward(optimizer)
    model(torch.ones(1, 300)).sum().backward()
    assert alive == [1] * 10


@pytest.mark.parametrize("build", [lambda ps: ALTO(ps, nonfinite="propagate"), lambda ps: EAdamW(ps, fused=True)])
def test_backward_needs_memory_for_few_layers_and_not_for_the_model(build):
    depth, width = 16, 256
    peaks = []
    for in_backward in (True, False):
        model = deep(depth, width)
        optimizer = build(model.parameters())
        if in_backward:
            step_in_backward(optimizer)
        for _ in range(2):
            loss = model(torch.ones(1, width)).sum()
            most = peak(loss.backward)
            optimizer.step()
            optimizer.zero_grad()
        peaks.append(most)
    layer = 4 * width**2
    assert peaks[0] <= 5 * layer < depth * layer <= peaks[1]


def test_one_bad_layer_is_left_out_alone_where_that_is_asked_for():
    """The others move as ever, and the layer's moments and count are as if the step had not been."""

    def build(model):
        return ALTO(model.parameters(), lr=0.01)

    def spoil(model, k):
        if k == 3:
            handle = model.narrow.bias.register_hook(lambda g: handle.remove() or torch.full_like(g, float("nan")))

    model, optimizer = train(build, True, by_layer=True, spoil=spoil)
    assert optimizer.skipped_steps == 1
    assert optimizer.state[model.narrow.bias]["step"] == STEPS - 1
    assert optimizer.state[model.narrow.weight]["step"] == STEPS
    assert all(p.isfinite().all() for p in model.parameters())
    assert_same_training(build, by_layer=True)


def test_e_leaves_a_bad_layer_out_too():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = E(AdamW(model.parameters(), fused=True), nonfinite="skip")
    step_in_backward(optimizer, nonfinite_by_layer=True)
    before = clone_params(model.parameters())
    model[0].bias.register_hook(lambda g: g * float("inf"))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert optimizer.skipped_steps == 1
    changed = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert changed == [True, False, True, True]


def test_a_bad_gradient_raises_out_of_backward_before_its_layer_moves():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = ALTO(model.parameters(), nonfinite="raise")
    step_in_backward(optimizer, nonfinite_by_layer=True)
    before = model[0].weight.detach().clone()
    model[0].weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(RuntimeError, match=r"^a gradient of shape \(4, 3\) has an infinity, a NaN or an entry whose"):
        model(torch.ones(2, 3)).sum().backward()
    assert torch.equal(model[0].weight, before)
    assert len(optimizer.param_groups[0]["params"]) == 4  # the groups are whole again


def test_the_state_dict_is_the_ordinary_one_and_resumes_in_either_way():
    def build(model):
        return ALTO(param_groups(model), lr=0.01, nonfinite="propagate", stochastic_rounding=True)

    expected, reference = Net().bfloat16(), None
    reference = build(expected)
    step_in_backward(reference)
    model = Net().bfloat16()
    optimizer = build(model)
    handle = step_in_backward(optimizer)
    for k in range(STEPS):
        if k in (2, 4):  # saved and loaded into new ones, of which only the first steps in backward
            saved, weights = through_a_file(optimizer.state_dict()), copy.deepcopy(model.state_dict())
            handle.remove()
            model = Net().bfloat16()
            model.load_state_dict(weights)
            optimizer = build(model)
            if k == 2:
                handle = step_in_backward(optimizer)
            optimizer.load_state_dict(saved)
        for m, o in ((model, optimizer), (expected, reference)):
            loss_of(m, k).backward()
            o.step()
            o.zero_grad()
    assert_same(model.parameters(), expected.parameters())
    assert state_of(optimizer).keys() >= state_of(reference).keys()


def test_remove_brings_the_ordinary_step_back_and_one_may_begin_again():
    model, expected = Net(), Net()
    optimizer, reference = (EAdamW(m.parameters(), lr=0.01, alpha=0.5, beta=0.5) for m in (model, expected))
    handle = None
    for k in range(STEPS):
        if k in (0, 4):
            handle = step_in_backward(optimizer)
        if k == 2:
            handle.remove()
            handle.remove()
        for m, o in ((model, optimizer), (expected, reference)):
            loss_of(m, k).backward()
            if m is model:
                assert (m.norm.weight.grad is None) == (k not in (2, 3))
            o.step()
            o.zero_grad()
    assert_same(model.parameters(), expected.parameters())
    assert_same_state(optimizer, reference)
    assert "_step_supports_amp_scaling" in vars(optimizer)
    handle.remove()
    assert "_step_supports_amp_scaling" not in vars(optimizer)


@pytest.mark.parametrize("build", [lambda ps: ALTO(ps, nonfinite="propagate"), lambda ps: EAdamW(ps)])
def test_copies_and_pickles_have_no_hooks(build):
    model = nn.Linear(3, 2)
    optimizer = build(model.parameters())
    step_in_backward(optimizer)
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    for other, its in (
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
        torch.load(file, weights_only=False),
    ):
        other(torch.ones(1, 3)).sum().backward()
        before = clone_params(other.parameters())
        assert all(p.grad is not None for p in other.parameters())
        its.step()
        assert_moved(other.parameters(), before)
        step_in_backward(its)  # and may have them


def test_hooks_of_step_run_once_a_step():
    model = Net()
    optimizer, calls = Lamb(model.parameters(), nonfinite="propagate"), []
    step_in_backward(optimizer)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for k in range(2):
        loss_of(model, k).backward()
        assert len(calls) == k
        optimizer.step()
    assert len(calls) == 2


def test_parameters_added_or_thawed_later_are_stepped_by_step():
    models = Net(), Net()
    optimizers = []
    for model in models:
        model.wide.requires_grad_(False)
        optimizers.append(Lamb([*model.embedding.parameters(), *model.wide.parameters()], nonfinite="propagate"))
    step_in_backward(optimizers[0])
    for k in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            if k == 2:
                model.wide.requires_grad_(True)
                optimizer.add_param_group({"params": list(model.norm.parameters()), "lr": 0.1})
            optimizer.zero_grad()
            loss_of(model, k).backward()
            optimizer.step()
    assert_same(models[0].parameters(), models[1].parameters())
    assert_moved(models[0].wide.parameters(), Net().wide.parameters())
