"""Checkpoints of other LAMBs, in each library's form, of a naive LAMB that runs as the library's would."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import torch
from naive import NaiveAdamW, NaiveOtherLamb
from support import random_tensors
from torch.nn import Parameter

from thalweg import ALTO

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
