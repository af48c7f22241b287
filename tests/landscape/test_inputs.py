"""What users have at hand is taken: lists, arrays, NumPy's integers, tensors in the shapes of parameters, mappings."""

from __future__ import annotations

from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from closed_forms import quadratic, small_network
from torch import nn
from torch.nn import functional as F

from thalweg import paper_defaults, param_groups
from thalweg.landscape import (
    FUNCTIONS,
    FixedSample,
    Instruments,
    bezier_path,
    elastic_band,
    filter_normalised_directions,
    gradient_noise,
    hessian_eigenpairs,
    hessian_eigenvalues,
    hessian_trace,
    linear_path,
    mean_increase,
    plane_through,
    slice_1d,
    slice_2d,
    spectral_density,
    walk,
    worst_case,
)
from thalweg.landscape.derivatives import value
from thalweg.theory import fastest_damping, stability_limit
from thalweg.zeroth_order import spsa

X = [-1.0, 0.0, 0.5]


@pytest.fixture
def loss():
    return quadratic(linear=1.0).place(torch.linspace(-1, 1, 64, dtype=torch.float64))


def in_all_forms(vector, params):
    shaped = [piece.view(p.shape) for piece, p in zip(vector.split([p.numel() for p in params]), params, strict=True)]
    return [
        vector,
        vector.float().double(),
        vector.tolist(),
        tuple(vector.tolist()),
        vector.numpy(),
        [np.float64(x) for x in vector.tolist()],
        shaped,
        tuple(shaped),
        [piece.numpy() for piece in shaped],
        {str(k): piece for k, piece in enumerate(shaped)},
        [vector],
        nn.Parameter(vector.clone()),
    ]


def test_a_direction_in_every_form(loss):
    d = torch.linspace(0, 1, 64).double()  # numbers that float32 has
    expected = slice_1d(loss, loss.params, d, torch.tensor(X)).losses
    for form in in_all_forms(d, loss.params):
        assert torch.equal(slice_1d(loss, loss.params, form, X).losses, expected)
        assert torch.equal(slice_2d(loss, loss.params, [form, d], X, [0.0]).losses[:, 0], expected)
        assert torch.equal(linear_path(loss, loss.params, form, -d, points=3).losses[1], loss.place(0 * d)().detach())
        loss.place(torch.linspace(-1, 1, 64, dtype=torch.float64))
        scale = hessian_trace(loss, loss.params, scale=form).value
        assert scale == hessian_trace(loss, loss.params, scale=d).value
        found = hessian_eigenpairs(loss, loss.params, start=form)
        assert found.values.item() == pytest.approx(9.0)


@pytest.mark.parametrize("x", [X, tuple(X), np.array(X), np.array(X, dtype=np.float32), torch.tensor(X), iter(X)])
def test_coordinates_in_every_form(loss, x):
    d = torch.ones(64, dtype=torch.float64)
    found = slice_1d(loss, loss.params, d, x)
    assert found.x.tolist() == X
    assert found.losses.tolist() == slice_1d(loss, loss.params, d, torch.tensor(X)).losses.tolist()


def test_integers_as_coordinates_and_directions_of_one_call(loss):
    assert slice_1d(loss, loss.params, filter_normalised_directions(loss.params), range(3)).x.tolist() == [0, 1, 2]
    directions = filter_normalised_directions(loss.params, np.int64(2))
    found = [slice_2d(loss, loss.params, each, [0, 1]).losses for each in (directions, torch.stack(directions))]
    assert torch.equal(*found)


def test_a_loss_of_one_parameter_takes_its_shape():
    p = nn.Parameter(torch.ones(2, 3))
    found = slice_1d(lambda: p.sum(), [p], torch.ones(2, 3), [0.0, 1.0])
    assert found.losses.tolist() == [6.0, 12.0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.ones(63), r"'one of shape \(63,\)'"),
        ([1.0] * 63, "'list of 63'"),
        ([torch.ones(2), 1.0], "'list of 2'"),
        ([torch.ones(64), torch.ones(64)], "'list of 2'"),
        ("x" * 64, "'str of 64'"),
        (None, "'NoneType'"),
        ([float("nan")] * 64, "'list of 64'"),
        (torch.ones(64, dtype=torch.complex64), r"'one of shape \(64,\)'"),
        ({"a": torch.ones(64), "b": "c"}, "'dict of 2'"),
    ],
)
def test_what_is_no_vector_is_refused_by_name(loss, given, told):
    says = f"direction must be a vector of 64 finite numbers, or a tensor in the shape of each parameter, got {told}"
    with pytest.raises(ValueError, match=says):
        slice_1d(loss, loss.params, given, X)


@pytest.mark.parametrize("x", [0.5, [], [[1.0]], "abc", [1.0, None], [float("inf")], None, {"x": 1.0}])
def test_what_is_no_coordinates_is_refused_by_name(loss, x):
    with pytest.raises(ValueError, match=r"^x must be a vector of finite coordinates"):
        slice_1d(loss, loss.params, torch.ones(64), x)


def with_integers(integer, loss):
    """Every integer argument."""
    i, params = integer, loss.params
    ends = torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64)
    optimizer = torch.optim.SGD(params, lr=0.1)
    loss().backward()
    instruments = Instruments(optimizer, every=i(2))
    instruments.micro_batch(i(4), 0.5)
    p = nn.Parameter(torch.ones(3))
    solutions = [torch.eye(64, dtype=torch.float64)[k] for k in range(3)]
    model, x, y = small_network()
    sample = FixedSample(model, F.cross_entropy, [(x, y), (x, y)], sizes=[i(40), i(20)])
    return [
        hessian_eigenvalues(loss, params, i(2)),
        hessian_trace(loss, params, i(9), seed=i(1)).value,
        spectral_density(loss, params, steps=i(4), vectors=i(2), seed=i(1)).nodes,
        worst_case(loss, params, 0.1, steps=i(2), seed=i(1)).increase,
        mean_increase(loss, params, 0.1, pairs=i(2), seed=i(1)).value,
        linear_path(loss, params, *ends, points=i(4)).losses,
        bezier_path(loss, params, *ends, steps=i(2), points=i(4), seed=i(1)).losses,
        elastic_band(loss, params, *ends, images=i(2), steps=i(2), points=i(4)).losses,
        plane_through(loss, params, solutions, points=i(2)).losses,
        filter_normalised_directions(params, i(2), seed=i(1))[1],
        walk(FUNCTIONS["closed"], "sgd", 0.0, 0.5, lr=0.01, steps=i(2), seed=i(1), noise=0.1).places,
        gradient_noise(sample, model.parameters()).trace,
        spsa(lambda: p.sum(), [p], seed=i(5), samples=i(2)),
        p.grad,
    ]


@pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor])
def test_integers_of_numpy_and_torch(integer):
    expected, found = (with_integers(one, quadratic(linear=1.0)) for one in (int, integer))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize("wrong", [1.0, True, "2", None, np.float64(2.0)])
def test_what_is_no_integer_is_refused(loss, wrong):
    for name, call in (
        ("k", lambda: hessian_eigenvalues(loss, loss.params, wrong)),
        ("points", lambda: linear_path(loss, loss.params, [0.0] * 64, [1.0] * 64, points=wrong)),
        ("seed", lambda: mean_increase(loss, loss.params, 0.1, seed=wrong)),
        ("steps", lambda: walk(FUNCTIONS["closed"], "sgd", 0.0, 0.5, lr=0.01, steps=wrong)),
        ("seed", lambda: spsa(loss, loss.params, seed=wrong)),
        ("batch_size", lambda: paper_defaults(wrong)),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be an integer"):
            call()


def test_numbers_of_numpy_elsewhere():
    assert paper_defaults(np.int64(4096)) == paper_defaults(4096)
    assert stability_limit(np.float32(-0.5), np.float64(0.5)) == stability_limit(-0.5, 0.5)
    for scalar in (np.float32(2.0), np.int64(2)):
        assert fastest_damping(scalar) == fastest_damping(2.0)
    assert fastest_damping(np.array([2.0])) == fastest_damping([2.0])
    model = nn.ModuleDict({"scanned": nn.Conv1d(2, 3, 4)})
    of_numpy, plain = (param_groups(model, patterns={"scanned.weight": {"stacked": one}}) for one in (np.int64(1), 1))
    assert [group.get("norm_dims") for group in of_numpy] == [group.get("norm_dims") for group in plain]
    function = FUNCTIONS["himmelblau"]
    assert function([[3.0, 2.0], [0.0, 0.0]]).tolist() == function(np.array([[3, 2], [0, 0]])).tolist() == [0.0, 170.0]
    for begin in ([[1.0, 2.0]], np.array([[1, 2]])):
        assert walk(function, "sgd", 0.0, 0.5, lr=1e-3, steps=2, begin=begin).places[0].tolist() == [[1.0, 2.0]]


def test_a_parameter_that_is_given_twice_counts_once():
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    found = hessian_eigenvalues(lambda: 3 * p[0] ** 2 + p[1] ** 2, [p, p], 2)
    assert found.tolist() == [6.0, 2.0]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, a, b, scale=1.0, labels=None):
        return self.layer(a + scale * b)


class Anything(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.module = inner

    def forward(self, *args, **named):
        return self.module(*args, **named)


class OfADict(nn.Module):
    def __init__(self):
        super().__init__()
        self.two = Two()

    def forward(self, inputs):
        return self.two(inputs["a"], inputs["b"])


class Pair(NamedTuple):
    inputs: object
    targets: object


def data(n):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, generator=generator), torch.randn(n, 3, generator=generator), torch.arange(n) % 2


def of_batch(output, batch):
    return F.cross_entropy(output, batch["labels"])


def of_nest(output, targets):
    return F.cross_entropy(output, targets[0]["y"])


@pytest.mark.parametrize(
    ("model", "loss", "batch"),
    [
        (Two, of_batch, lambda a, b, y: {"a": a, "b": b, "labels": y}),
        (Two, of_batch, lambda a, b, y: UserDict(a=a, b=b, labels=y)),
        (Two, of_batch, lambda a, b, y: {"index": torch.arange(len(y)), "a": a, "b": b, "labels": y}),
        (lambda: Anything(Two()), of_batch, lambda a, b, y: {"i": torch.arange(len(y)), "a": a, "b": b, "labels": y}),
        (Two, F.cross_entropy, lambda a, b, y: ({"a": a, "b": b}, y)),
        (Two, F.cross_entropy, lambda a, b, y: [UserDict(b=b, a=a), y]),
        (OfADict, F.cross_entropy, lambda a, b, y: ({"a": a, "b": b}, y)),
        (lambda: Anything(OfADict()), F.cross_entropy, lambda a, b, y: ({"a": a, "b": b}, y)),
        (Two, F.cross_entropy, lambda a, b, y: ((a, b), y)),
        (Two, F.cross_entropy, lambda a, b, y: Pair([a, b], y)),
        (Two, of_nest, lambda a, b, y: ((a, b), ({"y": y}, "names"))),
    ],
)  # fmt: skip
def test_batches_in_every_form(model, loss, batch):
    torch.manual_seed(0)
    model = model()
    parts = [data(n) for n in (5, 5, 2)]
    sample = FixedSample(model, loss, [batch(*part) for part in parts])
    assert sample.sizes == [5, 5, 2]
    a, b, y = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
    assert value(sample) == pytest.approx(F.cross_entropy(layer(a + b), y).item(), rel=1e-6)


def test_batches_of_transformers():
    from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    batch = {"input_ids": torch.arange(12).view(3, 4), "labels": torch.tensor([0, 1, 0])}
    expected = model(**batch).loss.item()
    for form in (batch, BatchEncoding(batch), {**batch, "row": torch.arange(3)}):
        sample = FixedSample(model, lambda output, _: output.loss, [form])
        assert (value(sample), sample.sizes) == (pytest.approx(expected), [3])
    pair = {"input_ids": batch["input_ids"]}, batch["labels"]
    sample = FixedSample(model, lambda output, y: F.cross_entropy(output.logits, y), [pair])
    assert value(sample) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (torch.ones(4), r"batches must be \(inputs, targets\) pairs or mappings, got 'a Tensor'"),
        ((torch.ones(4), torch.ones(4), torch.ones(4)), r"got 'a tuple of 3'"),
        ((None, None), r"with a tensor of examples, unless sizes are given, got 'a tuple without one'"),
        ((torch.ones(0), torch.ones(0)), "batches must be batches of examples, got '1 batches with 0 examples'"),
    ],
)
def test_batches_that_are_none_are_refused(batch, says):
    with pytest.raises(ValueError, match=says):
        FixedSample(Two(), F.cross_entropy, [batch])


def test_a_mapping_that_the_model_cannot_take_is_refused():
    sample = FixedSample(nn.Linear(3, 2), of_batch, [{"x": torch.ones(2, 3), "labels": torch.zeros(2).long()}])
    with pytest.raises(ValueError, match="batches must be such that the model, which takes input, can be called"):
        value(sample)
