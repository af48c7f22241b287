"""The checks that PyTorch runs over its own optimizers, with the cases it describes for AdamW."""

import copy

import pytest
import torch
from support import assert_near, assert_same, clone_params, make_grads, make_params, take_steps
from torch.testing._internal import common_optimizers

from thalweg import ALTO, EAdamW, Lamb

OPTIMIZERS = [ALTO, Lamb, EAdamW]
ADAMW = next(info for info in common_optimizers.optim_db if info.optim_cls is torch.optim.AdamW)
STEPS = 7


def cases(optimizer):
    """AdamW's inputs, less the options that the optimizer does not have and those that need CUDA."""
    names = set(optimizer([torch.zeros(1)]).defaults)
    for case in ADAMW.optim_inputs_func("cpu"):
        if set(case.kwargs) <= names and not case.kwargs.get("capturable"):
            yield pytest.param(optimizer, dict(case.kwargs), id=f"{optimizer.__name__}-{case.desc}")


EVERY_CASE = pytest.mark.parametrize(("optimizer", "kwargs"), [case for o in OPTIMIZERS for case in cases(o)])


def test_the_cases_are_there():
    assert [len(list(cases(optimizer))) for optimizer in OPTIMIZERS] == [4, 4, 5]


@EVERY_CASE
def test_foreach_is_the_for_loop(optimizer, kwargs):
    ours, theirs = make_params(), make_params()
    grads = make_grads(ours, STEPS)
    take_steps(optimizer(ours, foreach=True, **kwargs), ours, grads)
    take_steps(optimizer(theirs, foreach=False, **kwargs), theirs, grads)
    assert_near(ours, theirs, 1e-13)


@EVERY_CASE
def test_zero_gradients_are_no_step_without_weight_decay(optimizer, kwargs):
    params = make_params()
    start = clone_params(params)
    zeros = [[torch.zeros_like(p) for p in params]] * STEPS
    take_steps(optimizer(params, **{**kwargs, "weight_decay": 0.0}), params, zeros)
    assert_same(params, start)


@EVERY_CASE
def test_gradients_that_are_none_are_no_step(optimizer, kwargs):
    params = make_params()
    start = clone_params(params)
    optimizer(params, **kwargs).step()
    assert_same(params, start)


@EVERY_CASE
def test_the_state_dict_is_deterministic(optimizer, kwargs):
    params, others = make_params(), make_params()
    grads = make_grads(params, 2 * STEPS)
    first, second = optimizer(params, **kwargs), optimizer(others, **kwargs)
    take_steps(first, params, grads[:STEPS])
    take_steps(second, others, grads[:STEPS])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(first, params, grads[STEPS:])
    take_steps(second, others, grads[STEPS:])
    assert_same(params, others)


@EVERY_CASE
@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["number", "tensor"])
def test_steps_go_downhill_whatever_schedulers_do_to_the_rate(optimizer, kwargs, kind):
    lr = kind(0.1)
    if kind is torch.tensor and optimizer is EAdamW:
        kwargs = {**kwargs, "foreach": False}
    torch.manual_seed(0)
    params = make_params(((10, 5), (10,)))
    x = torch.randn(5, dtype=torch.float64)

    def closure():
        made.zero_grad()
        weight, bias = params
        loss = (weight @ x + bias).square().sum() * (-1 if kwargs.get("maximize") else 1)
        loss.backward()
        return loss

    made = optimizer([{"params": params[:1]}, {"params": params[1:], "lr": lr / 10}], **{**kwargs, "lr": lr})
    schedulers = torch.optim.lr_scheduler.StepLR(made, 10, gamma=0.9), torch.optim.lr_scheduler.ReduceLROnPlateau(made)
    losses = [made.step(closure).item()]
    for _ in range(20):
        schedulers[0].step()
        schedulers[1].step(losses[-1])
        losses.append(made.step(closure).item())
    first, *_, last = losses if not kwargs.get("maximize") else [-value for value in losses]
    assert last < 0.9 * first


@EVERY_CASE
def test_complex_parameters_are_real_ones_seen_in_pairs(optimizer, kwargs):
    params = make_params(dtype=torch.complex128)
    real = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    grads = make_grads(params, STEPS)
    take_steps(optimizer(params, **kwargs), params, grads)
    take_steps(optimizer(real, **kwargs), real, [[torch.view_as_real(g) for g in row] for row in grads])
    assert_near([torch.view_as_real(p.detach()) for p in params], real, 1e-13)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_count_that_is_a_number_is_loaded(optimizer):
    """As checkpoints of torch before 1.12 have it, and JSON."""
    params = make_params()
    grads = make_grads(params, 2 * STEPS)
    trained = optimizer(params)
    take_steps(trained, params, grads[:STEPS])
    saved = copy.deepcopy(trained.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    others = clone_params(params)
    resumed = optimizer(others)
    resumed.load_state_dict(saved)
    assert {(s["step"].dtype, s["step"].shape) for s in resumed.state.values()} == {(torch.float32, ())}
    take_steps(trained, params, grads[STEPS:])
    take_steps(resumed, others, grads[STEPS:])
    assert_same(params, others)


@pytest.mark.parametrize("named", [(True, False), (False, True)], ids=["named to plain", "plain to named"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_dict_with_names_loads_without_and_the_other_way_round(optimizer, named):
    models = [torch.nn.Linear(3, 2).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (
        optimizer(model.named_parameters() if names else model.parameters())
        for model, names in zip(models, named, strict=True)
    )
    params, others = (list(model.parameters()) for model in models)
    grads = make_grads(params, 2 * STEPS)
    take_steps(first, params, grads[:STEPS])
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(first, params, grads[STEPS:])
    take_steps(second, others, grads[STEPS:])
    assert_same(params, others)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_default_dtype_changes_nothing(optimizer, foreach):
    params, others = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    grads = make_grads(params, STEPS)
    take_steps(optimizer(params, foreach=foreach), params, grads)
    torch.set_default_dtype(torch.float64)
    try:
        take_steps(optimizer(others, foreach=foreach), others, grads)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(params, others)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_bad_input_of_adamw_is_an_error_here_too(optimizer):
    found = 0
    for error in ADAMW.optim_error_inputs_func("cpu", torch.float32):
        kwargs, params = dict(error.optimizer_error_input.kwargs), error.optimizer_error_input.params
        welcome = isinstance(kwargs.get("lr"), torch.Tensor) and kwargs["lr"].numel() == 1 and optimizer is not EAdamW
        if welcome or error.error_type is UserWarning:  # the warning has a test of its own below
            continue
        if params is None:
            params = [torch.zeros(2)]
        with pytest.raises(error.error_type, match="" if kwargs else error.error_regex):
            optimizer(params, **kwargs)
        found += 1
    assert found == (11 if optimizer is EAdamW else 10)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_strides_make_no_difference(optimizer, foreach):
    """Of parameters, of gradients, or of both: transposed, sliced, channels last."""
    torch.manual_seed(0)
    plain = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((4, 6), (2, 3, 5, 5), (3, 4))]
    strided = [
        torch.nn.Parameter(plain[0].detach().t().contiguous().t()),
        torch.nn.Parameter(plain[1].detach().clone(memory_format=torch.channels_last)),
        torch.nn.Parameter(torch.zeros(3, 8, dtype=torch.float64)[:, ::2].copy_(plain[2].detach())),
    ]
    assert not any(p.is_contiguous() for p in strided)
    grads = make_grads(plain, STEPS)
    other = [[g.t().contiguous().t() if g.ndim == 2 else g.clone() for g in row] for row in grads]
    take_steps(optimizer(plain, foreach=foreach), plain, grads)
    take_steps(optimizer(strided, foreach=foreach), strided, other)
    assert_near(strided, plain, 1e-14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fused_kernels_see_gradients_laid_out_as_their_parameters(optimizer):
    """Torch's own, for the CPU, do not look: AdamW alone would step wrongly here."""
    torch.manual_seed(0)
    plain = make_params(((4, 6), (2, 3, 5, 5)), torch.float32)
    strided = [
        torch.nn.Parameter(plain[0].detach().t().contiguous().t()),
        torch.nn.Parameter(plain[1].detach().clone(memory_format=torch.channels_last)),
    ]
    assert not any(p.is_contiguous() for p in strided)
    grads = make_grads(plain, STEPS)
    take_steps(optimizer(plain, foreach=False), plain, grads)
    take_steps(optimizer(strided, fused=True), strided, grads)
    assert_near(strided, plain, 1e-5)


def test_a_parameter_with_gaps_in_memory_is_refused_by_e_around_a_fused_base():
    """Torch's kernel would write into the gaps."""
    p = torch.nn.Parameter(torch.ones(3, 8)[:, ::2])
    p.grad = grad = torch.ones(3, 4)
    with pytest.raises(RuntimeError, match=r"^a fused base needs parameters without gaps in memory, got one of shape "):
        EAdamW([p], amsgrad=True, fused=True).step()
    assert torch.equal(p, torch.ones(3, 4))
    assert p.grad is grad


def test_a_parameter_with_gaps_in_memory_takes_the_one_pass_of_e_and_adamw():
    around = torch.zeros(3, 8)
    p, q = torch.nn.Parameter(around[:, ::2]), torch.nn.Parameter(torch.zeros(3, 4))
    grads = make_grads([q], STEPS)
    take_steps(EAdamW([p], fused=True), [p], grads)
    take_steps(EAdamW([q], fused=False), [q], grads)
    assert_near([p], [q], 1e-6)
    assert not around[:, 1::2].any()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_empty_parameters_take_part_in_nothing(optimizer, foreach):
    empty = torch.nn.Parameter(torch.empty(0, 3, dtype=torch.float64))
    params, others = make_params(), make_params()
    grads = make_grads(params, STEPS)
    with_empty = [params[0], empty, *params[1:]]
    take_steps(
        optimizer(with_empty, foreach=foreach), with_empty, [[g[0], empty.detach().clone(), *g[1:]] for g in grads]
    )
    take_steps(optimizer(others, foreach=foreach), others, grads)
    assert_same(params, others)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_parameter_twice_in_a_group_is_warned_of(optimizer):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer([p, p])


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dtypes_may_be_mixed_in_a_group(optimizer, foreach):
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float32)
    mixed, apart = ([make_params(((3, 2),), d, seed=i)[0] for i, d in enumerate(dtypes)] for _ in range(2))
    grads = [[make_grads([p], 1, seed=k)[0][0] for p in mixed] for k in range(STEPS)]
    take_steps(optimizer(mixed, foreach=foreach), mixed, grads)
    for i, p in enumerate(apart):
        take_steps(optimizer([p], foreach=foreach), [p], [[row[i]] for row in grads])
    assert_same(mixed, apart)
