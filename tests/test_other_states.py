"""Checkpoints of other LAMBs, in each library's form: ten more steps are those that the library would have taken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from naive import NaiveAdamW, NaiveOtherLamb
from support import assert_near, clone_params, make_grads, random_tensors, take_steps, through_a_file
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from thalweg import ALTO, Lamb, lamb_defaults, lamb_schedule, lamb_state

BEFORE, AFTER, LR, DECAY = 3, 10, 0.02, 0.1
SHAPES = ((5, 3), (4, 4), (3,))  # two matrices that decay, one of them square, and a vector that does not
GRADIENT = 0.1  # the norm of all of them is below 1


def corrected(k, betas=(0.9, 0.999)):
    return (1 - betas[1] ** k) ** 0.5 / (1 - betas[0] ** k)


class Old:
    """The old library: one naive LAMB a parameter."""

    def __init__(self, eps=1e-6, decayed_only=False, undecayed=False, adam=False, factor=None, **options):
        self.params, self.factor = random_tensors(SHAPES, torch.float64, 0), factor or (lambda k: 1.0)
        self.rules = []
        for p, decay in zip(self.params, (0.0,) * 3 if undecayed else (DECAY, DECAY, 0.0), strict=True):
            common = {"lr": LR, "betas": (0.9, 0.999), "eps": eps, "weight_decay": decay}
            is_adam = adam or (decayed_only and decay == 0.0)
            rule = NaiveAdamW(p, **common) if is_adam else NaiveOtherLamb(p, trust_eps=0.0, **common, **options)
            self.rules.append(rule)

    def step(self, row):
        for rule, g in zip(self.rules, row, strict=True):
            rule.lr = LR * self.factor(rule.k + 1)
            rule.step(g)

    @property
    def thetas(self):
        return [rule.theta for rule in self.rules]


def group(**options):
    """Two saved groups, with the library's own options."""
    usual = {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-6, **options}
    return [{**usual, "weight_decay": DECAY, "params": [0, 1]}, {**usual, "weight_decay": 0.0, "params": [2]}]


def each(old, **more):
    """Moments of each parameter, and what else is saved there."""
    return {i: {**more, "exp_avg": rule.m, "exp_avg_sq": rule.v} for i, rule in enumerate(old.rules)}


def in_group(**options):
    return lambda old: {"state": each(old), "param_groups": group(step=BEFORE, **options)}


def in_state(more=None, **options):
    return lambda old: {"state": each(old, step=BEFORE, **(more or {})), "param_groups": group(**options)}


NORMS = {"weight_norm": torch.tensor(1.0), "adam_norm": torch.tensor(1.0), "trust_ratio": 1}
TIMM = {
    "bias_correction": True,
    "grad_averaging": True,
    "max_grad_norm": 1.0,
    "trust_clip": False,
    "always_adapt": False,
    "caution": False,
    "decoupled_decay": False,
    "corrected_weight_decay": False,
    "max_lr_snapshot": LR,
    "foreach": None,
}
APEX = {"bias_correction": True, "grad_averaging": True, "max_grad_norm": 1.0}
DEEPSPEED = {"bias_correction": True, "max_grad_norm": 0.0, "max_coeff": 10.0, "min_coeff": 0.01, "eps": 1e-8}


def bitsandbytes(nested):
    def form(old):
        states = {}
        for i, rule in enumerate(old.rules):
            state = {"state1": rule.m, "state2": rule.v, "unorm_vec": torch.zeros(1)}
            states[i] = {"step": BEFORE, **({"__bnb_optimizer_quant_state__": state} if nested else state)}
        return {"state": states, "param_groups": group(alpha=0.0, t_alpha=None, t_beta3=None, eps=1e-8)}

    return form


ORDER = (0, 2, 1)  # of a model: the vector comes between


def kernel(x):
    return x.T.contiguous().numpy() if x.ndim == 2 else x.numpy()


def moments_in_order(old):
    return [(kernel(old.rules[i].m), kernel(old.rules[i].v)) for i in ORDER]


def keras(with_rate=True, calls=1):
    def form(old):
        before = [torch.tensor(BEFORE * calls).numpy(), *([torch.tensor(LR).numpy()] if with_rate else [])]
        accumulators = [kernel(torch.zeros(SHAPES[i])) for i in ORDER] if calls > 1 else []
        flat = [x for pair in moments_in_order(old) for x in pair]
        return {"optimizer/vars": {str(i): x for i, x in enumerate([*before, *accumulators, *flat])}}

    return form


def paddle(old):
    names, saved = ("linear_7.w_0", "linear_7.b_0", "linear_8.w_0"), {}
    for name, (m, v) in zip(names, moments_in_order(old), strict=True):
        saved |= {f"{name}_moment1_0": m, f"{name}_moment2_0": v}
        for i, beta in ((1, 0.9), (2, 0.999)):
            saved[f"{name}_beta{i}_pow_acc_0"] = torch.tensor([beta ** (BEFORE + 1)]).numpy()
    return {**saved, "StructuredToParameterName@@": {}}


def tensorflow(old):
    pairs = moments_in_order(old)
    return [BEFORE, *(m for m, _ in pairs), *(v for _, v in pairs)]


def tinygrad(old):
    saved = {}
    for i, rules in enumerate((old.rules[:2], old.rules[2:])):
        saved[f"optimizers.{i}.lr"] = torch.tensor([LR])
        for j, rule in enumerate(rules):
            saved |= {f"optimizers.{i}.m.{j}": rule.m, f"optimizers.{i}.v.{j}": rule.v}
        saved |= {f"optimizers.{i}.b{n}_t": torch.tensor([b**BEFORE]) for n, b in ((1, 0.9), (2, 0.999))}
    return saved


def fastai(old, spared=(2,), **hypers):
    """As Learner.save writes it, of two groups that differ in lr."""
    states = [{"grad_avg": rule.m, "sqr_avg": rule.v, "step": BEFORE} for rule in old.rules]
    for i in spared:
        states[i]["do_wd"] = False
    usual = {"wd": DECAY, "lr": LR, "mom": 0.9, "sqr_mom": 0.999, "eps": 1e-5}
    return {"model": {}, "opt": {"state": states, "hypers": [usual, {**usual, "lr": 0.5, **hypers}]}}


class MxnetArray:
    """An array that is converted by its own method alone."""

    def __init__(self, x):
        self.x = x

    def asnumpy(self):
        return self.x.numpy()


def mxnet(masters=False, bounds=(None, None), **more):
    def form(old):
        states = {i: (MxnetArray(old.rules[j].m), MxnetArray(old.rules[j].v)) for i, j in enumerate(ORDER)}
        if masters:
            states = {i: (MxnetArray(torch.zeros(1)), pair) for i, pair in states.items()}
        own = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6, "wd": DECAY, "lr": LR, "lr_scheduler": None, **more}
        own |= {
            "lower_bound": bounds[0],
            "upper_bound": bounds[1],
            "_index_update_count": dict.fromkeys(states, BEFORE),
        }
        return states, own if masters else SimpleNamespace(**own)

    return form


def oneflow(old, **options):
    """Without decay, which oneflow scales by the ratio."""
    usual = {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "adam_w_mode": True, **options}
    own = {**usual, "amsgrad": False, "bias_correction1": 0.5, "bias_correction2": 0.1, "contiguous_params": False}
    groups = [{"_options": own, "_enable_clip_grad": False, "params": ids} for ids in ([0, 1], [2])]
    return {"state": {"step": BEFORE, **each(old)}, "param_groups": groups}


def flax(old):
    """As flax' to_state_dict writes the state of optax.lamb."""
    trees = [{}, {}]
    for name, i in (("dense", 0), ("out", 1)):
        for tree, x in zip(trees, (old.rules[i].m, old.rules[i].v), strict=True):
            tree[name] = {"kernel": kernel(x)}
    for tree, x in zip(trees, (old.rules[2].m, old.rules[2].v), strict=True):
        tree["dense"]["bias"] = x.numpy()
    adam = {
        "count": torch.tensor(BEFORE, dtype=torch.int32).numpy(),
        "mu": {"params": trees[0]},
        "nu": {"params": trees[1]},
    }
    return {"0": adam, "1": {}, "2": {}, "3": {}}


class Case(NamedTuple):
    library: str
    form: object
    old: Mapping = MappingProxyType({})
    told: Mapping = MappingProxyType({})


UNCORRECTED = {"bias_correction": False}
RATE = {"bias_correction": False, "factor": corrected}
DECAYED = {"weight_decay": DECAY}
CASES = {
    "timm": Case("timm", in_group(**TIMM), {"decayed_only": True}),
    "timm in many options": Case(
        "timm",
        in_group(**{**TIMM, "always_adapt": True, "trust_clip": True, "decoupled_decay": True, "max_grad_norm": None}),
        {"ratio_clip": (0.0, 1.0), "decoupled_decay": True},
    ),
    "apex": Case("apex", in_group(**APEX), {"decayed_only": True}),
    "apex, use_nvlamb": Case("apex", in_group(**APEX), {}, {"use_nvlamb": True}),
    "apex in mixed precision": Case(
        "apex",
        lambda old: {"state": each(old), "param_groups": group(step=torch.tensor([3]), **APEX)},
        {"decayed_only": True},
    ),
    "torch_optimizer": Case("torch_optimizer", in_state(NORMS), UNCORRECTED),
    "torch_optimizer, debias": Case("torch_optimizer", in_state(NORMS), RATE, {"debias": True}),
    "pytorch_lamb": Case("pytorch_lamb", in_state(NORMS), UNCORRECTED),
    "catalyst": Case("catalyst", in_state(NORMS), UNCORRECTED),
    "holocron": Case("holocron", in_state({"local_lr": 1.0}, eps=1e-8), {**UNCORRECTED, "eps": 1e-8}),
    "colossalai": Case("colossalai", in_state(bias_correction=False), UNCORRECTED),
    "colossalai, bias_correction": Case("colossalai", in_state(bias_correction=True), RATE),
    "deepspeed": Case("deepspeed", in_state(**DEEPSPEED), {**RATE, "eps": 1e-8, "ratio_clip": (0.01, 10.0)}),
    "deepspeed in float16": Case(
        "deepspeed",
        lambda old: {"optimizer": {"optimizer_state_dict": in_state(**DEEPSPEED)(old), "cur_scale": 1.0}},
        {**RATE, "eps": 1e-8, "ratio_clip": (0.01, 10.0)},
    ),
    "bitsandbytes": Case("bitsandbytes", bitsandbytes(True), {"adam": True, "eps": 1e-8}, {"max_unorm": 0.0}),
    "bitsandbytes until 2026": Case(
        "bitsandbytes", bitsandbytes(False), {"adam": True, "eps": 1e-8}, {"max_unorm": 0.0}
    ),
    "fastai": Case("fastai", fastai, {"eps": 1e-5, "decoupled_decay": True, "ratio_clip": (0.0, 10.0)}),
    "mxnet": Case("mxnet", mxnet()),
    "mxnet with masters and a schedule": Case("mxnet", mxnet(masters=True, lr=0.5, lr_scheduler=len)),
    "oneflow": Case("oneflow", oneflow, {"eps": 1e-8, "undecayed": True}),
    "oneflow, uncorrected": Case(
        "oneflow",
        lambda old: oneflow(old, do_bias_correction=False),
        {**UNCORRECTED, "eps": 1e-8, "undecayed": True},
    ),
    "optax": Case("optax", flax, {}, DECAYED),
    "keras": Case("keras", keras(), {"eps": 1e-7, "decoupled_decay": True}, DECAYED),
    "keras with a schedule": Case("keras", keras(with_rate=False), {"eps": 1e-7, "decoupled_decay": True}, DECAYED),
    "keras, accumulated": Case(
        "keras",
        keras(calls=4),
        {"eps": 1e-7, "decoupled_decay": True},
        {**DECAYED, "gradient_accumulation_steps": 4},
    ),
    "paddle": Case("paddle", paddle, {"decayed_only": True}, {"lamb_weight_decay": DECAY}),
    "paddle, always_adapt": Case("paddle", paddle, {}, {"lamb_weight_decay": DECAY, "always_adapt": True}),
    "tensorflow-addons": Case("tensorflow-addons", tensorflow, {}, DECAYED),
    "tf-models": Case("tf-models", tensorflow, {}, {"weight_decay_rate": DECAY}),
    "tinygrad": Case("tinygrad", tinygrad, {}, DECAYED),
}
FLAX_NAMES = ("dense.weight", "out.weight", "dense.bias")


def ours(cls, starts, names=None):
    """An optimizer of the same two groups, in whose constructor nothing is the library's but lr."""
    params = [Parameter(t.clone()) for t in starts]
    named = list(zip(names, params, strict=True)) if names else params
    return cls(
        [{"params": named[:2], "weight_decay": 0.3}, {"params": named[2:], "weight_decay": 0.0}],
        lr=LR,
        max_grad_norm=0.01,
        trust_clip=(0.1, 0.2),
        nonfinite="propagate",
        **({"alpha": 0.0} if cls is ALTO else {}),
    ), params


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cls", [Lamb, ALTO])
def test_ten_more_steps_are_those_of_the_library(cls, name):
    library, form, options, told = CASES[name]
    old = Old(**options)
    rows = [[GRADIENT * g for g in row] for row in make_grads(old.params, BEFORE + AFTER)]
    for row in rows[:BEFORE]:
        old.step(row)
    optimizer, params = ours(cls, old.thetas, FLAX_NAMES if library == "optax" else None)
    checkpoint = form(old)
    if isinstance(checkpoint, dict) and not library.startswith(("optax", "keras", "paddle")):
        checkpoint = through_a_file(checkpoint)
    optimizer.load_state_dict(lamb_state(library, checkpoint, optimizer, **told))
    assert optimizer.param_groups[0]["nonfinite"] == "propagate"
    if "factor" in options:
        rate = lamb_schedule(library, **told, **({"bias_correction": True} if library == "colossalai" else {}))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(LR * corrected(BEFORE + 1))
        schedule = LambdaLR(optimizer, rate, last_epoch=BEFORE - 1)
    for row in rows[BEFORE:]:
        old.step(row)
        take_steps(optimizer, params, [row])
        if "factor" in options:
            schedule.step()
        assert_near(params, old.thetas, 1e-7 if library in ("tinygrad", "keras") else 1e-12)  # lr is float32 there


@pytest.mark.parametrize("decay", ["inside", "outside, debias", "by hand"])
def test_pytorch_optimizer_itself(decay):
    """Decoupled, it decays by lr where it steps by lr / (1-β1^k): the decay is told 0, and written before each step."""
    library = pytest.importorskip("pytorch_optimizer")
    theirs = [Parameter(t) for t in random_tensors(SHAPES, torch.float64, 0)]
    debias = {"adam_debias": True} if decay == "outside, debias" else {}
    groups = [{"params": theirs[:2], "weight_decay": DECAY}, {"params": theirs[2:]}]
    old = library.Lamb(groups, lr=LR, weight_decouple=decay != "inside", **debias)
    rows = make_grads(theirs, BEFORE + AFTER)
    take_steps(old, theirs, rows[:BEFORE])
    optimizer, params = ours(Lamb, [p.detach() for p in theirs])
    saved, told = through_a_file(old.state_dict()), debias
    if decay == "by hand":
        told = {"weight_decay": 0.0}
        recipe = r"give weight_decay=0\.0 here, and before step k write weight_decay \* \(1 - β1\*\*k\) into the groups"
        with pytest.raises(ValueError, match=recipe):
            lamb_state("pytorch_optimizer", saved, optimizer)
    optimizer.load_state_dict(lamb_state("pytorch_optimizer", saved, optimizer, **told))
    rate = lamb_schedule("pytorch_optimizer", **debias)
    schedule = None if debias else LambdaLR(optimizer, rate, last_epoch=BEFORE - 1)
    for k, row in enumerate(rows[BEFORE:], BEFORE + 1):
        take_steps(old, theirs, [row])
        if decay == "by hand":
            optimizer.param_groups[0]["weight_decay"] = DECAY * (1.0 - 0.9**k)
        take_steps(optimizer, params, [row])
        if schedule:
            schedule.step()
    assert_near(params, theirs, 1e-6)  # it adds 1e-6 to the norm in the ratio


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
def test_optax_itself(injected, as_list):
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    start = random_tensors(SHAPES, torch.float32, 0)

    def tree(tensors):
        dense, out, bias = tensors
        if as_list:
            return [jax.numpy.asarray(x.numpy()) for x in tensors]
        kernels = [jax.numpy.asarray(x.T.contiguous().numpy()) for x in (dense, out)]
        bias = jax.numpy.asarray(bias.numpy())
        return {"params": {"out": {"kernel": kernels[1]}, "dense": {"kernel": kernels[0], "bias": bias}}}

    make = optax.inject_hyperparams(optax.lamb, static_args="mask") if injected else optax.lamb
    rule = make(LR, weight_decay=DECAY, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
    theirs = tree(start)
    state = rule.init(theirs)
    rows = make_grads(start, BEFORE + AFTER)
    step = jax.jit(lambda row, state, theirs: rule.update(row, state, theirs))
    for k, row in enumerate(rows):
        if k == BEFORE:
            ends = jax.tree.leaves(theirs)
            ends = ends if as_list else [ends[1].T, ends[2].T, ends[0]]
            optimizer, params = ours(Lamb, [torch.tensor(x.__array__()) for x in ends], FLAX_NAMES)
            told = {} if injected else {"weight_decay": DECAY}
            optimizer.load_state_dict(lamb_state("optax", state, optimizer, **told))
        updates, state = step(tree(row), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        if k >= BEFORE:
            take_steps(optimizer, params, [row])
    ends = jax.tree.leaves(theirs)
    ends = ends if as_list else [ends[1].T, ends[2].T, ends[0]]
    assert_near(params, [torch.tensor(x.__array__()) for x in ends], 2e-6)


def test_bounds_of_mxnet_are_read_and_zero_is_none():
    optimizer, _ = ours(Lamb, random_tensors(SHAPES, torch.float64, 0))
    for bounds, clip in (((None, 2.0), (0.0, 2.0)), ((0.5, 0.0), (0.5, float("inf"))), ((None, 0.0), None)):
        checkpoint = mxnet(bounds=bounds)(Old())
        assert lamb_state("mxnet", checkpoint, optimizer)["param_groups"][0]["trust_clip"] == clip


def test_a_parameter_without_a_gradient_counts_with_its_group():
    """As in timm, apex and pytorch_optimizer, where the count is the group's."""
    optimizer, params = ours(Lamb, random_tensors(SHAPES, torch.float64, 0))
    saved = in_group(**TIMM)(Old())
    del saved["state"][1]
    optimizer.load_state_dict(lamb_state("timm", saved, optimizer))
    state = optimizer.state[params[1]]
    assert int(state["step"]) == BEFORE
    assert not state["exp_avg"].any()
    assert not state["exp_avg_sq"].any()
    saved = in_state(NORMS)(Old())
    del saved["state"][1]
    optimizer.load_state_dict(lamb_state("torch_optimizer", saved, optimizer))
    assert params[1] not in optimizer.state


def test_names_go_before_the_order():
    old = Old()
    for row in make_grads(old.params, BEFORE):
        old.step(row)
    saved = in_group(**TIMM)(old)
    saved["param_groups"][0]["param_names"], saved["param_groups"][1]["param_names"] = ["a", "q"], ["b"]
    params = [Parameter(t) for t in old.thetas]
    optimizer = Lamb([{"params": [("b", params[2])]}, {"params": [("q", params[1])]}, {"params": [("a", params[0])]}])
    optimizer.load_state_dict(lamb_state("timm", saved, optimizer))
    assert [torch.equal(optimizer.state[p]["exp_avg"], r.m) for p, r in zip(params, old.rules, strict=True)] == [
        True
    ] * 3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, DECAY, DECAY]
    mixed = Lamb([{"params": [("a", params[0]), ("b", params[2]), ("q", params[1])]}])
    with pytest.raises(ValueError, match="several groups for group 0 of the optimizer: their options must be the same"):
        lamb_state("timm", saved, mixed)


@pytest.mark.parametrize("in_torchs_order", [True, False])
def test_a_square_kernel_is_turned_as_its_values_were(in_torchs_order):
    """Keras' file has the weights: where the model has one as it was saved, so are its moments."""
    old = Old()
    old.step(make_grads(old.params, 1)[0])
    weight = random_tensors([(4, 4)], torch.float64, 5)[0]
    m, v = old.rules[1].m, old.rules[1].v
    vars_ = {"0": torch.tensor(1).numpy(), "1": torch.tensor(LR).numpy(), "2": m.numpy(), "3": v.numpy()}
    saved = {"layers": {"dense": {"vars": {"0": weight.numpy()}}}, "optimizer/vars": vars_}
    optimizer = Lamb([Parameter(weight.T.contiguous() if in_torchs_order else weight.clone())])
    state = lamb_state("keras", saved, optimizer)["state"][0]
    assert torch.equal(state["exp_avg"], m.T if in_torchs_order else m)
    assert torch.equal(state["exp_avg_sq"], v.T if in_torchs_order else v)


def test_moments_of_bitsandbytes_in_8_bits_are_read():
    n = 600
    code, scales = torch.linspace(-1.0, 1.0, 256), torch.tensor([0.5, 2.0, 4.0])
    index = torch.arange(n).remainder(256).to(torch.uint8).reshape(30, 20)
    state = {f"{name}{i}": x for i in (1, 2) for name, x in (("state", index), ("qmap", code), ("absmax", scales))}
    saved = {
        "state": {0: {"step": 3, "__bnb_optimizer_quant_state__": state}},
        "param_groups": [{**group()[0], "params": [0]}],
    }
    optimizer = Lamb([Parameter(torch.zeros(30, 20))])
    m = lamb_state("bitsandbytes", saved, optimizer, max_unorm=0.0)["state"][0]["exp_avg"].flatten()
    assert all(m[i] == code[i % 256] * scales[i // 256] for i in range(n))


@pytest.mark.parametrize(("steps", "counted"), [(3, 3), (1000, 1000), (10_000, 10_000), (40_000, 39_999)])
def test_the_step_is_found_in_the_power_of_beta2(steps, counted):
    """β1's, in float32, sticks from step 966 on."""
    power = torch.ones(1)
    for _ in range(steps):
        power *= 0.999
    saved = {"m.0": torch.zeros(3), "v.0": torch.zeros(3), "b1_t": torch.zeros(1), "b2_t": power}
    assert lamb_state("tinygrad", saved, Lamb([Parameter(torch.ones(3))]))["state"][0]["step"] == counted
    saved["b2_t"] = torch.zeros(1)
    assert lamb_state("tinygrad", saved, Lamb([Parameter(torch.ones(3))]))["state"][0]["step"] > 100_000


def test_moments_keep_their_dtype_and_float16_is_widened_by_the_load():
    for dtype, stored in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        old = Old()
        old.step(make_grads(old.params, 1)[0])
        saved = in_group(**TIMM)(old)
        for state in saved["state"].values():
            state.update(exp_avg=state["exp_avg"].to(dtype), exp_avg_sq=state["exp_avg_sq"].to(dtype))
        optimizer, params = ours(Lamb, [p.to(dtype) for p in old.thetas])
        optimizer.load_state_dict(lamb_state("timm", saved, optimizer))
        assert optimizer.state[params[0]]["exp_avg_sq"].dtype is stored


def test_arrays_in_bfloat16_are_read():
    jax = pytest.importorskip("jax")
    tree = [jax.numpy.asarray([0.5, -2.0, 3.0], dtype=jax.numpy.bfloat16)]
    optimizer = Lamb([Parameter(torch.ones(3))])
    state = lamb_state("optax", {"count": 3, "mu": tree, "nu": tree}, optimizer)["state"][0]
    assert state["exp_avg"].dtype is torch.bfloat16
    assert state["exp_avg"].tolist() == [0.5, -2.0, 3.0]


def changed(form, change):
    def changed_form(old):
        saved = form(old)
        change(saved)
        return saved

    return changed_form


def put(*path, value):
    def change(saved):
        for key in path[:-1]:
            saved = saved[key]
        saved[path[-1]] = value

    return change


REFUSED = {
    "an unknown library": (
        "tim",
        in_group(**TIMM),
        {},
        r"library must be one of apex, .*, got 'tim'; did you mean 'timm'\?",
    ),
    "no state dict": (
        "timm",
        lambda old: [1],
        {},
        "the checkpoint of timm must be a dictionary with 'state' and 'param_groups', got list: its .*",
    ),
    "state under names": (
        "torch_optimizer",
        changed(in_state(NORMS), lambda saved: saved.update(state={"weight": saved["state"][0]})),
        {},
        r"the checkpoint of torch_optimizer has state under \['weight'\]: keys must be those in 'params' of its groups",
    ),
    "other groups": (
        "timm",
        changed(in_group(**TIMM), lambda saved: saved["param_groups"].append(saved["param_groups"][0])),
        {},
        r"the checkpoint of timm has groups of \[2, 1, 2\] parameters, the optimizer of \[2, 1\]: make .*",
    ),
    "another optimizer": (
        "timm",
        changed(in_group(**TIMM), lambda saved: saved["state"][0].update(momentum_buffer=1)),
        {},
        "the checkpoint of timm has state under .*'momentum_buffer'.*: its LAMB's has exp_avg, exp_avg_sq",
    ),
    "another model": (
        "timm",
        changed(in_group(**TIMM), lambda saved: saved["state"][0].update(exp_avg=torch.zeros(2))),
        {},
        r"the checkpoint of timm has moments of shape \(2,\) for the parameter of shape \(5, 3\) of group 0: .*",
    ),
    "a step that is none": (
        "torch_optimizer",
        changed(in_state(NORMS), put("state", 0, "step", value=1.5)),
        {},
        r"the step in the checkpoint of torch_optimizer must be a whole number in \[0, inf\), got tensor\(1\.5000.*",
    ),
    "an option that Lamb lacks": (
        "timm",
        in_group(**{**TIMM, "caution": True}),
        {},
        "timm's caution=True has no counterpart in Lamb: .*",
    ),
    "fastai's groups of different betas": (
        "fastai",
        lambda old: fastai(old, mom=0.8),
        {},
        "the checkpoint of fastai has groups of different lr, mom: they must be the same but for lr",
    ),
    "a parameter that fastai decays, in a group without decay": (
        "fastai",
        lambda old: fastai(old, spared=()),
        {},
        r"the checkpoint of fastai decays a parameter of shape \(3,\): give it a group with decay",
    ),
    "one that it spares, in a group with decay": (
        "fastai",
        lambda old: fastai(old, spared=(0, 2)),
        {},
        r"the checkpoint of fastai spares a parameter of shape \(5, 3\): give it a group without decay",
    ),
    "fastai's model alone": (
        "fastai",
        lambda old: {"weight": 1},
        {},
        "the checkpoint of fastai must be a dictionary with 'state' and 'hypers': .*",
    ),
    "mxnet's states alone": (
        "mxnet",
        lambda old: mxnet()(old)[0],
        {},
        "the checkpoint of mxnet must be a pair of states and optimizer: .*",
    ),
    "mxnet's clipping": (
        "mxnet",
        mxnet(clip_gradient=1.0),
        {},
        "mxnet's clip_gradient=1.0 has no counterpart in Lamb: it clips the elements of gradients",
    ),
    "oneflow's decay": (
        "oneflow",
        lambda old: oneflow(old, weight_decay=0.1),
        {},
        "oneflow's weight_decay=0.1 has no counterpart in Lamb: .*",
    ),
    "oneflow's parameters in one": (
        "oneflow",
        changed(oneflow, put("param_groups", 0, "_options", "contiguous_params", value=True)),
        {},
        "the checkpoint of oneflow has all parameters of a group in one: .*",
    ),
    "oneflow's model": (
        "oneflow",
        lambda old: [1],
        {},
        "the checkpoint of oneflow must be a dictionary with 'state' and 'param_groups': .*",
    ),
    "an unknown option": (
        "timm",
        in_group(**TIMM),
        {"adapt": True},
        r"an option of timm's LAMB must be one of .*, got 'adapt'.*",
    ),
    "bitsandbytes' cap": (
        "bitsandbytes",
        bitsandbytes(True),
        {},
        r"the checkpoint of bitsandbytes is of an AdamW whose update is capped .*: give max_unorm=0\.0 .*",
    ),
    "an optax tree with names, of an optimizer without": (
        "optax",
        flax,
        {},
        "the checkpoint of optax has its moments under names, 'dense.weight', .*: make the optimizer with .*",
    ),
    "no optax state": ("optax", lambda old: (), {}, "the checkpoint of optax has 0 nodes with count, mu and nu: .*"),
    "keras' weights alone": (
        "keras",
        lambda old: {"layers": {}},
        {},
        r"the checkpoint of keras has no 'optimizer/vars' but \['layers'\]: .*",
    ),
    "keras' accumulators, untold": (
        "keras",
        keras(calls=4),
        DECAYED,
        "the checkpoint of keras has variables of shapes .*gradient_accumulation_steps=n.*",
    ),
    "keras, between two updates": (
        "keras",
        changed(keras(calls=4), put("optimizer/vars", "0", value=13)),
        {**DECAYED, "gradient_accumulation_steps": 4},
        "the checkpoint of keras was saved 1 calls after an update: .*",
    ),
    "a parameter less": (
        "paddle",
        lambda old: {k: v for k, v in paddle(old).items() if not k.startswith("linear_8")},
        {},
        r"the checkpoint of paddle has nothing left that fits the parameter of shape \(4, 4\) of group 0: it has .*",
    ),
    "no power of β2": (
        "tinygrad",
        lambda old: {k: v for k, v in tinygrad(old).items() if not k.endswith("b2_t")},
        {},
        r"the checkpoint of tinygrad has no 'optimizers\.0\.b2_t': it must be whole, .*",
    ),
    "accumulation over no call": (
        "keras",
        keras(),
        {"gradient_accumulation_steps": 0},
        r"gradient_accumulation_steps must be None or an integer in \[1, inf\), got 0",
    ),
    "paddle's weights": (
        "paddle",
        lambda old: {"0.weight": 1},
        {},
        "the checkpoint of paddle has nothing named .*_moment1_0: .*",
    ),
    "tinygrad's weights": (
        "tinygrad",
        lambda old: {"weight": 1},
        {},
        "the checkpoint of tinygrad has nothing named m.0: .*",
    ),
    "moments without a step": (
        "timm",
        lambda old: {"state": each(old), "param_groups": group(**TIMM)},
        {},
        "the checkpoint of timm has moments and no 'step': it must be whole, .*",
    ),
    "a learning rate that is none": (
        "timm",
        in_group(**TIMM, lr=None),
        {},
        r"lr in the checkpoint of timm must be a number in \[0, inf\), got None",
    ),
    "a moment that is none": (
        "timm",
        changed(in_group(**TIMM), put("state", 0, "exp_avg", value=None)),
        {},
        "a checkpoint must have numbers, arrays and tensors, got None",
    ),
    "states in a list": (
        "timm",
        lambda old: {"state": [], "param_groups": group(**TIMM)},
        {},
        "the checkpoint of timm has no dictionary 'state' or no list 'param_groups' with 'params': .*",
    ),
    "timm's as another's": (
        "torch_optimizer",
        in_group(**TIMM),
        {},
        r"the checkpoint of torch_optimizer has the options of timm's LAMB: lamb_state\(\"timm\", \.\.\.\) reads it",
    ),
    "AdamW's": (
        "pytorch_lamb",
        in_state(amsgrad=False),
        {},
        "the checkpoint of pytorch_lamb has the options of an ALTO, a Lamb or an Adam: give that to load_state_dict .*",
    ),
    "ours": (
        "apex",
        in_state(**APEX, trust_eps=1e-6),
        {},
        "the checkpoint of apex has the options of an ALTO, a Lamb or an Adam: give that to load_state_dict .*",
    ),
    "DeepSpeed's clipping": (
        "deepspeed",
        in_state(**{**DEEPSPEED, "max_grad_norm": None}),
        {},
        r"max_grad_norm must be a number in \[0, inf\), got None",
    ),
    "a model's weights": ("tf-models", lambda old: [1, 2], {}, "the checkpoint of tf-models must be a list of .*: .*"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_over_is_said(name):
    library, form, told, text = REFUSED[name]
    optimizer, _ = ours(Lamb, random_tensors(SHAPES, torch.float64, 0))
    with pytest.raises(ValueError, match=f"^{text}$"):
        lamb_state(library, form(Old()), optimizer, **told)


@pytest.mark.parametrize(("library", "steps"), [("deepspeed", 60_000), ("pytorch_optimizer", 500)])
def test_the_schedule_goes_on_where_its_factor_has_become_1(library, steps):
    old, told = Old(undecayed=True), {"weight_decay": 0.0}
    checkpoint = {"state": each(old, step=steps), "param_groups": group()}
    optimizer, _ = ours(Lamb, old.thetas)
    optimizer.load_state_dict(lamb_state(library, checkpoint, optimizer, **told))
    schedule = LambdaLR(optimizer, lamb_schedule(library), last_epoch=steps - 1)
    assert schedule.get_last_lr() == [LR, LR]


@pytest.mark.parametrize("library", [None, ["timm"]])
@pytest.mark.parametrize("take", [lambda x: lamb_state(x, {}, Lamb([torch.ones(3)])), lamb_defaults, lamb_schedule])
def test_a_library_is_told_by_its_name(library, take):
    with pytest.raises(ValueError, match=rf"^library must be one of apex, .*, got {re.escape(repr(library))}$"):
        take(library)


def test_it_is_for_alto_and_lamb():
    text = re.escape("optimizer must be an ALTO or a Lamb, got 'AdamW'")
    with pytest.raises(ValueError, match=text):
        lamb_state("timm", {}, torch.optim.AdamW(clone_params([torch.ones(3)])))


def test_decay_that_no_group_has_is_refused():
    old = Old()
    optimizer = Lamb([Parameter(p) for p in old.thetas], weight_decay=0.0)
    text = r"^the checkpoint of tf-models decays by 0\.1, and no group of the optimizer has weight decay: give one .*"
    with pytest.raises(ValueError, match=text):
        lamb_state("tf-models", tensorflow(old), optimizer, weight_decay_rate=DECAY)
    assert lamb_state("tf-models", tensorflow(old), optimizer)["param_groups"][0]["weight_decay"] == 0.0
