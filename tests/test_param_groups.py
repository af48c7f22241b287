"""Groups are built by the type of a module and the shape of a parameter, not by names."""

from __future__ import annotations

import pytest
import torch
from support import clone_params
from torch import nn
from torch.nn.utils import prune

from thalweg import ALTO, Lamb, check_coverage, param_groups


class Home(nn.Module):
    """A home-made module of one parameter."""

    def __init__(self, *shape, **others):
        super().__init__()
        self.own = nn.Parameter(torch.full(shape, 0.5))
        self.__dict__.update(others)


def with_weight(cls, *shape):
    module = cls()
    module.weight = nn.Parameter(torch.ones(shape))
    return module


def split(model, **kwargs):
    """The names of the weights and of the others."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, **kwargs)
    found = {group["trust_ratio"]: {names[id(p)] for p in group["params"]} for group in groups}
    return found.get(True, set()), found.get(False, set())


class Attention(nn.Module):
    """Names that would mislead a helper that reads them."""

    def __init__(self):
        super().__init__()
        self.norm_projection = nn.Linear(4, 4)
        self.biased = nn.Linear(4, 4, bias=False)
        self.first = nn.LayerNorm(4)
        self.scale_shift = nn.LayerNorm((3, 4))
        self.second = nn.RMSNorm((2, 4))
        self.bias_table = nn.Parameter(torch.zeros(2, 3))
        self.temperature = nn.Parameter(torch.ones(()))
        self.gain = nn.Parameter(torch.ones(4))


def test_names_play_no_part():
    weights, others = split(Attention())
    assert weights == {"norm_projection.weight", "biased.weight", "bias_table"}
    assert others == {
        "norm_projection.bias",
        "first.weight",
        "first.bias",
        "scale_shift.weight",
        "scale_shift.bias",
        "second.weight",
        "temperature",
        "gain",
    }


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm((3, 4)),
        nn.RMSNorm((3, 4)),
        nn.GroupNorm(2, 4),
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.BatchNorm3d(4),
        nn.SyncBatchNorm(4),
        nn.InstanceNorm2d(4, affine=True),
    ],
)
def test_parameters_of_normalisation_modules_are_neither_decayed_nor_adapted(norm):
    weights, others = split(norm)
    assert weights == set()
    assert others == {name for name, _ in norm.named_parameters()} >= {"weight"}


def test_a_subclass_of_a_normalisation_module_is_one():
    class Custom(nn.LayerNorm):
        pass

    assert split(Custom((2, 3))) == (set(), {"weight", "bias"})


@pytest.mark.parametrize("size", [{}, {"kdim": 3, "vdim": 2, "add_bias_kv": True}])
def test_multihead_attention_has_its_matrices_adapted_and_its_biases_not(size):
    weights, others = split(nn.MultiheadAttention(4, 2, **size))
    projections = {"q_proj_weight", "k_proj_weight", "v_proj_weight"} if size else {"in_proj_weight"}
    assert weights == projections | {"out_proj.weight"}
    assert others == {"in_proj_bias", "out_proj.bias", *(("bias_k", "bias_v") if size else ())}


def test_convolutions_embeddings_and_recurrences_are_weights():
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 1), "lookup": nn.Embedding(5, 3), "memory": nn.LSTM(3, 2)})
    weights, others = split(model)
    assert weights == {"conv.weight", "lookup.weight", "memory.weight_ih_l0", "memory.weight_hh_l0"}
    assert others == {"conv.bias", "memory.bias_ih_l0", "memory.bias_hh_l0"}


weight_norm = nn.utils.parametrizations.weight_norm
DISGUISES = {  # a module, and which of its parameters are vectors
    "class token": (lambda: Home(1, 1, 5), "own"),
    "scales of channels": (lambda: Home(5, 1, 1), "own"),
    "temperatures of heads": (lambda: Home(2, 1, 1), "own"),
    "a row": (lambda: Home(1, 5), "own"),
    "a column": (lambda: Home(5, 1), "own"),
    "one number": (lambda: Home(1, 1), "own"),
    "a list": (lambda: nn.ParameterList([torch.ones(1, 4), torch.ones(3, 1, 1)]), "0 1"),
    "PReLU": (lambda: nn.PReLU(3), "weight"),
    "keys' bias": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), "in_proj_bias bias_k bias_v out_proj.bias"),
    "weight_norm": (lambda: weight_norm(nn.Linear(3, 4)), "bias parametrizations.weight.original0"),
    "weight_norm, old": (lambda: nn.utils.weight_norm(nn.Linear(3, 4)), "bias weight_g"),
    "weight_norm over kernels": (
        lambda: weight_norm(nn.Conv1d(2, 4, 3), dim=2),
        "bias parametrizations.weight.original0",
    ),
    "weight_norm of all": (lambda: weight_norm(nn.Linear(3, 4), dim=None), "bias parametrizations.weight.original0"),
    "weight_norm of one input": (lambda: weight_norm(nn.Linear(1, 4)), "bias parametrizations.weight.original0"),
    "weight_norm of a recurrence": (
        lambda: nn.utils.weight_norm(nn.LSTM(3, 2), "weight_hh_l0"),
        "bias_ih_l0 bias_hh_l0 weight_hh_l0_g",
    ),
    "gains of heads": (lambda: with_weight(type("HeadLayerNorm", (nn.Module,), {}), 2, 3), "weight"),
    "gains of a gated norm": (lambda: with_weight(type("RMSNormGated", (nn.Module,), {}), 2, 3), "weight"),
    "a parametrized norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.LayerNorm((2, 3))),
        "bias parametrizations.weight.original",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of weight_norm, which is old
@pytest.mark.parametrize("which", DISGUISES)
def test_a_vector_is_one_whatever_axes_of_length_one_it_has(which):
    make, vectors = DISGUISES[which]
    assert split(make())[1] == set(vectors.split())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of weight_norm, which is old
@pytest.mark.parametrize("which", DISGUISES)
def test_lamb_leaves_a_vector_alone_whose_gradient_is_zero(which):
    """Decayed and adapted, it would lose lr of its length at each step, which is .6 % of it after 100 at lr = .05."""
    make, vectors = DISGUISES[which]
    model = make()
    optimizer = Lamb(param_groups(model, 0.5), lr=0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(100):
        optimizer.step()
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert kept == set(vectors.split()) | {name for name, p in before.items() if not p.any()}


THIN = {  # a module, and which of its parameters are matrices
    "one output": (lambda: nn.Linear(5, 1), "weight"),
    "one input": (lambda: nn.Linear(1, 5), "weight"),
    "lazy": (lambda: nn.LazyLinear(1), "weight"),
    "one form": (lambda: nn.Bilinear(1, 5, 1), "weight"),
    "one pixel": (lambda: nn.Conv2d(1, 1, 1), "weight"),
    "one channel": (lambda: nn.ConvTranspose1d(1, 5, 1), "weight"),
    "one number a word": (lambda: nn.Embedding(5, 1), "weight"),
    "one word": (lambda: nn.EmbeddingBag(1, 5), "weight"),
    "one unit": (
        lambda: nn.LSTM(1, 1, bidirectional=True),
        "weight_ih_l0 weight_hh_l0 weight_ih_l0_reverse weight_hh_l0_reverse",
    ),
    "one unit, projected": (lambda: nn.LSTM(3, 2, proj_size=1), "weight_ih_l0 weight_hh_l0 weight_hr_l0"),
    "one unit's cell": (lambda: nn.GRUCell(1, 1), "weight_ih weight_hh"),
    "one head of one": (lambda: nn.MultiheadAttention(1, 1), "in_proj_weight out_proj.weight"),
    "another width": (
        lambda: nn.MultiheadAttention(1, 1, kdim=2, vdim=3),
        "q_proj_weight k_proj_weight v_proj_weight out_proj.weight",
    ),
    "weight_norm": (lambda: weight_norm(nn.Linear(5, 1)), "parametrizations.weight.original1"),
    "weight_norm of one input": (lambda: weight_norm(nn.Linear(1, 5)), "parametrizations.weight.original1"),
    "weight_norm, old": (lambda: nn.utils.weight_norm(nn.Linear(5, 1)), "weight_v"),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(5, 1)), "parametrizations.weight.original"),
    "spectral_norm, old": (lambda: nn.utils.spectral_norm(nn.Linear(5, 1)), "weight_orig"),
    "pruned": (lambda: prune.identity(nn.Linear(5, 1), "weight"), "weight_orig"),
    "another package's": (lambda: with_weight(type("ColumnParallelLinear", (nn.Module,), {}), 1, 5), "weight"),
    "GPT-2's": (lambda: with_weight(type("Conv1D", (nn.Module,), {}), 5, 1), "weight"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("which", THIN)
def test_the_weights_of_linear_maps_are_matrices_whatever_their_shape(which):
    make, matrices = THIN[which]
    model = make()
    if which == "lazy":
        model(torch.ones(1, 5))
    assert split(model)[0] == set(matrices.split())


def test_a_lazy_parameter_without_a_shape_is_an_error():
    with pytest.raises(ValueError, match=r"^model must have been run once, .* to have a shape, got 0\.weight$"):
        param_groups(nn.Sequential(nn.LazyLinear(3)))


def test_a_tied_embedding_appears_once():
    model = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 5, bias=False))
    model[2].weight = model[0].weight
    groups = param_groups(model)
    assert [len(group["params"]) for group in groups] == [1, 2]
    assert groups[0]["params"][0] is model[0].weight
    ALTO(groups)  # torch refuses a parameter that appears twice


def test_a_frozen_parameter_keeps_its_place():
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    assert [group["params"] for group in param_groups(model)] == [[model.weight], [model.bias]]


def test_every_parameter_is_in_exactly_one_group_in_the_order_of_the_model():
    model = Attention()
    ids = [[id(p) for p in group["params"]] for group in param_groups(model)]
    order = {id(p): i for i, p in enumerate(model.parameters())}
    assert sorted(ids[0] + ids[1], key=order.get) == list(order)
    assert all(group == sorted(group, key=order.get) for group in ids)


def test_weights_are_decayed_as_told_and_the_others_never():
    model = nn.Linear(3, 2)
    for kwargs, decay in (({}, 0.01), ({"weight_decay": 0.3}, 0.3), ({"weight_decay": 0.0}, 0.0)):
        groups = param_groups(model, **kwargs)
        assert [(g["weight_decay"], g["trust_ratio"]) for g in groups] == [(decay, True), (0.0, False)]


def test_an_empty_group_is_left_out():
    assert [group["trust_ratio"] for group in param_groups(nn.Linear(3, 2, bias=False))] == [True]
    assert [group["trust_ratio"] for group in param_groups(nn.LayerNorm(3))] == [False]


def test_the_groups_do_in_lamb_what_they_say():
    """Adapted: a weight moves by lr·‖θ‖. Not adapted, not decayed: a bias moves by lr·sign(g) at the first step."""
    model = nn.Linear(4, 3).double()
    weight, bias = clone_params(model.parameters())
    optimizer = Lamb(param_groups(model, 0.5), lr=0.1, eps=1e-37, trust_eps=0.0)
    for p in model.parameters():
        p.grad = torch.full_like(p, -2.0)
    optimizer.step()
    assert (model.weight - weight).norm().item() == pytest.approx(0.1 * weight.norm().item(), rel=1e-14)
    assert torch.allclose(model.bias, bias + 0.1, rtol=0.0, atol=1e-15)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"^weight_decay must be a number in \[0, inf\), got -0\.1$"):
        param_groups(nn.Linear(2, 2), weight_decay=-0.1)
    with pytest.raises(ValueError, match=r"^model must have at least one parameter, got none$"):
        param_groups(nn.ReLU())


def test_the_first_pattern_that_matches_wins_and_overrides():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    groups = param_groups(model, 0.1, patterns={"2.*": {"lr": 0.5, "trust_ratio": False}, "*.weight": {"lr": 0.25}})
    told = [({k: v for k, v in g.items() if k != "params"}, [tuple(p.shape) for p in g["params"]]) for g in groups]
    assert told == [
        ({"weight_decay": 0.1, "trust_ratio": True, "lr": 0.25}, [(3, 2), (3, 3)]),
        ({"weight_decay": 0.0, "trust_ratio": False}, [(3,), (3,)]),
        ({"weight_decay": 0.1, "trust_ratio": False, "lr": 0.5}, [(1, 3)]),
        ({"weight_decay": 0.0, "trust_ratio": False, "lr": 0.5}, [(1,)]),
    ]


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"patterns that match a parameter of Linear, got \['wieght'\]$"):
        param_groups(torch.nn.Linear(1, 1), patterns={"weight": {}, "wieght": {}})


def test_a_tied_parameter_goes_by_all_its_names_and_modules():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    model["head"].weight = model["embed"].weight
    for pattern in ("embed.*", "head.weight", nn.Embedding, nn.Linear):
        group = next(group for group in param_groups(model, patterns={pattern: {"lr": 0.5}}) if "lr" in group)
        assert group["params"][0] is model["embed"].weight
    gains = nn.ModuleDict({"norm": nn.LayerNorm((2, 3)), "listed": nn.ParameterList()})
    gains["listed"].append(gains["norm"].weight)
    assert split(gains) == (set(), {"norm.weight", "norm.bias"})


def options_by_name(model, patterns):
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, 0.1, patterns=patterns)
    plain = ("params", "weight_decay", "trust_ratio")
    return {names[id(p)]: {k: v for k, v in g.items() if k not in plain} for g in groups for p in g["params"]}


def test_a_pattern_may_be_a_type_of_module_and_takes_in_what_is_inside():
    model = nn.ModuleDict(
        {"lookup": nn.Embedding(5, 4), "attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 5)}
    )
    model["head"] = weight_norm(model["head"])
    a, b, c = {"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}
    assert options_by_name(model, {nn.Embedding: a, nn.MultiheadAttention: b, nn.Linear: c}) == {
        "lookup.weight": a,
        "attention.in_proj_weight": b,
        "attention.in_proj_bias": b,
        "attention.out_proj.weight": b,
        "attention.out_proj.bias": b,
        "head.bias": c,
        "head.parametrizations.weight.original0": c,
        "head.parametrizations.weight.original1": c,
    }
    assert set(map(str, options_by_name(model, {"*.bias": a, nn.Module: b}).values())) == {str(a), str(b)}


def test_embeddings_are_spared_decay_by_their_type():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5), nn.LayerNorm(5))
    groups = param_groups(model, 0.1, patterns={nn.Embedding: {"weight_decay": 0.0}})
    told = [(g["weight_decay"], g["trust_ratio"], [tuple(p.shape) for p in g["params"]]) for g in groups]
    assert told == [(0.0, True, [(5, 3)]), (0.1, True, [(5, 3)]), (0.0, False, [(5,)] * 3)]


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        ({nn.Conv2d: {}}, r"patterns that match a parameter of Linear, got \['Conv2d'\]"),
        ({"*": {}, "bias": {}}, r"patterns that are the first to match a parameter of Linear, got \['bias'\]"),
        ({"*": {}, nn.Linear: {}}, r"patterns that are the first to match a parameter of Linear, got \['Linear'\]"),
        *(
            (bad, rf"None or a mapping of names and types of modules to options, got {got}")
            for bad, got in (
                ({int: {}}, r"\{<class 'int'>: \{\}\}"),
                ({3: {}}, r"\{3: \{\}\}"),
                ({"bias": 0.1}, r"\{'bias': 0\.1\}"),
                (["bias"], r"\['bias'\]"),
            )
        ),
    ],
)
def test_patterns_that_can_do_nothing_are_an_error(patterns, text):
    with pytest.raises(ValueError, match=f"^patterns must be {text}$"):
        param_groups(nn.Linear(2, 2), patterns=patterns)


def test_coverage_names_what_is_left_out_doubled_or_foreign():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    model[1].bias.requires_grad_(False)  # frozen: may be left out
    check_coverage(model, ALTO(param_groups(model)))
    check_coverage(model, ALTO([p for p in model.parameters() if p.requires_grad]))
    stray = torch.nn.Parameter(torch.ones(7))
    optimizer = torch.optim.SGD([model[0].weight, stray], lr=0.1)
    optimizer.param_groups[0]["params"].append(model[0].weight)
    with pytest.raises(
        ValueError, match=r"left out: 0\.bias, 1\.weight; doubled: 0\.weight; not the model's: one of shape \(7,\)$"
    ):
        check_coverage(model, optimizer)
