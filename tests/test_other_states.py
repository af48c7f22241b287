"""Checkpoints of other LAMBs, in each library's form: ten more steps are those that the library would have taken."""

from __future__ import annotations

import pytest
import torch
from saved_lambs import (
    AFTER,
    BEFORE,
    CASES,
    DECAY,
    FLAX_NAMES,
    GRADIENT,
    LR,
    NORMS,
    SHAPES,
    TIMM,
    Old,
    corrected,
    each,
    group,
    in_group,
    in_state,
    mxnet,
    ours,
)
from support import assert_near, make_grads, random_tensors, take_steps, through_a_file
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from thalweg import ALTO, Lamb, lamb_schedule, lamb_state


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


@pytest.mark.parametrize(("library", "steps"), [("deepspeed", 60_000), ("pytorch_optimizer", 500)])
def test_the_schedule_goes_on_where_its_factor_has_become_1(library, steps):
    old, told = Old(undecayed=True), {"weight_decay": 0.0}
    checkpoint = {"state": each(old, step=steps), "param_groups": group()}
    optimizer, _ = ours(Lamb, old.thetas)
    optimizer.load_state_dict(lamb_state(library, checkpoint, optimizer, **told))
    schedule = LambdaLR(optimizer, lamb_schedule(library), last_epoch=steps - 1)
    assert schedule.get_last_lr() == [LR, LR]
