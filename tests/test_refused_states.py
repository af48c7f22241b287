"""What of other libraries' checkpoints of LAMB cannot be taken over, and what is said of it."""

from __future__ import annotations

import re

import pytest
import torch
from saved_lambs import (
    APEX,
    DECAY,
    DECAYED,
    DEEPSPEED,
    NORMS,
    SHAPES,
    TIMM,
    Old,
    bitsandbytes,
    each,
    fastai,
    flax,
    group,
    in_group,
    in_state,
    keras,
    mxnet,
    oneflow,
    ours,
    paddle,
    tensorflow,
    tinygrad,
)
from support import clone_params, random_tensors
from torch.nn import Parameter

from thalweg import Lamb, lamb_defaults, lamb_schedule, lamb_state


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
