"""Parameters that grow and are pruned: their state follows."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from support import assert_same, make_grads, make_params, take_steps
from torch.nn import Parameter
from torch.optim import SGD, Adafactor, AdamW, NAdam, RMSprop

from thalweg import ALTO, ESGD, E, EAdamW, Lamb, resize_state

SHAPE = (6, 5)
NARROW = (64, 256)
MAKE = {
    "ALTO": ALTO,
    "ALTO without the trust ratio": functools.partial(ALTO, trust_ratio=False),
    "ALTO, foreach": functools.partial(ALTO, trust_ratio=False, foreach=True),
    "ALTO in bfloat16": functools.partial(ALTO, trust_ratio=False, state_dtype=torch.bfloat16),
    "ALTO in 8 bits": functools.partial(ALTO, trust_ratio=False, state_dtype="8bit"),
    "Lamb": Lamb,
    "EAdamW": EAdamW,
    "EAdamW, not in one pass": functools.partial(EAdamW, fused=False),
    "EAdamW with a maximum": functools.partial(EAdamW, amsgrad=True),
    "ESGD": functools.partial(ESGD, momentum=0.9),
    "E(RMSprop)": lambda params, **kwargs: E(RMSprop(params, momentum=0.5, centered=True, **kwargs)),
    "E(NAdam)": lambda params, **kwargs: E(NAdam(params, **kwargs)),
    "AdamW": AdamW,
    "SGD": SGD,
}
BY_ELEMENT = [name for name in MAKE if name not in ("ALTO", "Lamb", "ALTO in bfloat16", "ALTO in 8 bits")]


def trained(make, shape=SHAPE):
    """A parameter, and another before and behind it, which make four steps."""
    params = make_params(((3,), shape, (2, 2)), torch.float32)
    optimizer = make([{"params": params[:2]}, {"params": params[2:]}], lr=0.01)
    take_steps(optimizer, params, make_grads(params, 4))
    return optimizer, params


def replaced(optimizer, params, new, index=None):
    new = Parameter(new.detach().clone())
    resize_state(optimizer, params[1], new, index)
    return [params[0], new, params[2]]


def shape_of(name):
    return NARROW if "8 bits" in name else SHAPE


@pytest.mark.parametrize("index", [None, "integers", "booleans"])
@pytest.mark.parametrize("name", MAKE)
def test_all_rows_in_their_places_change_nothing(name, index):
    optimizer, params = trained(MAKE[name], shape_of(name))
    twin, twins = trained(MAKE[name], shape_of(name))
    n = len(params[1])
    old, state = params[1], dict(optimizer.state[params[1]])
    given = {None: None, "integers": torch.arange(n), "booleans": torch.ones(n, dtype=torch.bool)}[index]
    params = replaced(optimizer, params, params[1], given)
    assert old not in optimizer.state
    assert [p for group in optimizer.param_groups for p in group["params"]] == params
    assert list(optimizer.state[params[1]]) == list(state)
    for some, of in ((params, optimizer), (twins, twin)):
        take_steps(of, some, make_grads(some, 4, seed=2))
    assert_same(params, twins)


@pytest.mark.parametrize("name", BY_ELEMENT)
def test_rows_train_as_if_the_others_had_never_been(name):
    optimizer, params = trained(MAKE[name])
    rows = torch.tensor([4, 0, 0, 5])
    alone = Parameter(make_params(((3,), SHAPE, (2, 2)), torch.float32)[1].detach()[rows])
    twin = MAKE[name]([alone], lr=0.01)
    for row in make_grads(params, 4):
        take_steps(twin, [alone], [[row[1][rows]]])
    params = replaced(optimizer, params, params[1][rows], rows)
    for row in make_grads(params, 4, seed=2):
        take_steps(optimizer, params, [row])
        take_steps(twin, [alone], [[row[1]]])
    torch.testing.assert_close(params[1], alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", MAKE)
def test_a_buffer_has_the_rows_asked_for_and_zeros(name):
    shape = shape_of(name)
    optimizer, params = trained(MAKE[name], shape)
    before = {key: value.clone() for key, value in optimizer.state[params[1]].items() if value is not None}
    rows = torch.tensor([5, 1, 1], dtype=torch.int32)
    old = params[1]
    new = torch.cat((old.detach()[rows.long()], torch.zeros(17, shape[1])))
    after = optimizer.state[replaced(optimizer, params, new, rows)[1]]
    assert after.keys() >= before.keys()
    for key, value in before.items():
        if value.ndim == 0:
            assert after[key] == value
            continue
        assert after[key].shape == new.shape
        x, y = (t.dequantize() if hasattr(t, "codes") else t for t in (value, after[key]))
        assert type(after[key]) is type(value)
        assert after[key].dtype == value.dtype
        assert torch.equal(y[:3], x[rows.long()])
        assert not y[3:].any()


def test_a_size_that_is_no_whole_number_of_blocks_is_kept_in_float32():
    optimizer, params = trained(MAKE["ALTO in 8 bits"], (4096, 3))
    state = optimizer.state[params[1]]
    assert hasattr(state["exp_avg"], "codes")
    expected = state["exp_avg"].dequantize()[:100]
    params = replaced(optimizer, params, params[1][:100], torch.arange(100))
    assert type(optimizer.state[params[1]]["exp_avg"]) is torch.Tensor
    assert torch.equal(optimizer.state[params[1]]["exp_avg"], expected)
    take_steps(optimizer, params, make_grads(params, 1))


@pytest.mark.parametrize("name", ["ALTO", "EAdamW", "EAdamW, not in one pass", "ESGD"])
def test_before_the_first_step_there_is_nothing_to_carry(name):
    params = make_params(((3,), SHAPE, (2, 2)), torch.float32)
    optimizer = MAKE[name](params, lr=0.01)
    params = replaced(optimizer, params, torch.zeros(2, 5), torch.arange(2))
    assert optimizer.param_groups[0]["params"] == params
    assert not optimizer.state
    take_steps(optimizer, params, make_grads(params, 2))


def test_it_is_saved_and_loaded_as_any_other():
    optimizer, params = trained(ALTO)
    params = replaced(optimizer, params, torch.zeros(9, 5))
    others = [Parameter(p.detach().clone()) for p in params]
    resumed = ALTO([{"params": others[:2]}, {"params": others[2:]}], lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for some, of in ((params, optimizer), (others, resumed)):
        take_steps(of, some, make_grads(some, 3, seed=2))
    assert_same(params, others)


GOOD = torch.zeros(3, 5)
ERRORS = {
    "no optimizer": (
        lambda o, p: resize_state([], p, GOOD),
        TypeError,
        "optimizer must be a torch.optim.Optimizer, got list",
    ),
    "no tensor": (lambda o, p: resize_state(o, p, [1.0]), TypeError, "new must be a tensor, got list"),
    "not its own": (
        lambda o, p: resize_state(o, p.detach(), GOOD),
        ValueError,
        "old must be a parameter of the optimizer, got one of shape (6, 5)",
    ),
    "there already": (
        lambda o, p: resize_state(o, p, p),
        ValueError,
        "new must be a tensor that the optimizer does not have yet, got one of shape (6, 5)",
    ),
    "other axes": (
        lambda o, p: resize_state(o, p, torch.zeros(6, 4)),
        ValueError,
        "new must be of shape (m, ...) for an old one of shape (n, ...), all other axes as in (6, 5), got (6, 4)",
    ),
    "no axis": (
        lambda o, p: resize_state(o, p, torch.zeros(())),
        ValueError,
        "new must be of shape (m, ...) .*, got ()",
    ),
    "dtype": (
        lambda o, p: resize_state(o, p, GOOD.double()),
        ValueError,
        "new must be torch.float32 on cpu, as the old one is, got torch.float64 on cpu",
    ),
    "device": (lambda o, p: resize_state(o, p, GOOD.to("meta")), ValueError, "new must be torch.float32 on cpu, .*"),
    "a graph": (
        lambda o, p: resize_state(o, p, torch.cat((p, p))),
        ValueError,
        "new must be a leaf, such as a torch.nn.Parameter, got one of shape (12, 5) with a graph",
    ),
    "fewer rows": (
        lambda o, p: resize_state(o, p, GOOD),
        ValueError,
        "index must be given where rows are lost, 6 to 3, got None",
    ),
    "rows beyond": (
        lambda o, p: resize_state(o, p, GOOD, torch.tensor([1, 6])),
        ValueError,
        "index must be at most 3 rows, those of the new parameter, in [0, 6), got 2 in [1, 6]",
    ),
    "rows from the end": (
        lambda o, p: resize_state(o, p, GOOD, torch.tensor([-1])),
        ValueError,
        "index must be at most 3 rows, .*, got 1 in [-1, -1]",
    ),
    "too many rows": (
        lambda o, p: resize_state(o, p, GOOD, torch.zeros(4, dtype=torch.long)),
        ValueError,
        "index must be at most 3 rows, .*, got 4 in [0, 0]",
    ),
    "too few booleans": (
        lambda o, p: resize_state(o, p, GOOD, torch.ones(5, dtype=torch.bool)),
        ValueError,
        "index must be 6 booleans, one for each row of the old parameter, got 5 booleans",
    ),
    "too many booleans": (
        lambda o, p: resize_state(o, p, GOOD, torch.tensor([True, True, True, False, False, False, False])),
        ValueError,
        "index must be 6 booleans, one for each row of the old parameter, got 7 booleans",
    ),
    "floats": (
        lambda o, p: resize_state(o, p, GOOD, torch.ones(3)),
        ValueError,
        "index must be None or a tensor of one axis, of integers or booleans, got torch.float32 of shape (3,)",
    ),
    "a list": (
        lambda o, p: resize_state(o, p, GOOD, [0, 1]),
        ValueError,
        "index must be None or a tensor .*, got list",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("name", ["ALTO", "EAdamW"])
def test_what_does_not_fit_is_one_error_and_changes_nothing(name, case):
    optimizer, params = trained(MAKE[name])
    state = {key: value.clone() for key, value in optimizer.state[params[1]].items()}
    call, error, text = ERRORS[case]
    with pytest.raises(error) as caught:
        call(optimizer, params[1])
    assert_text(str(caught.value), text)
    assert [p for group in optimizer.param_groups for p in group["params"]] == params
    assert_same(optimizer.state[params[1]].values(), state.values())


def assert_text(text, expected):
    """``.*`` stands for anything, everything else for itself."""
    begin, _, end = expected.partition(".*")
    assert text == expected or (".*" in expected and text.startswith(begin) and text.endswith(end))


def test_state_in_another_shape_is_refused_before_anything_changes():
    (p,) = make_params((SHAPE,), torch.float32)
    optimizer = E(Adafactor([p]))
    take_steps(optimizer, [p], make_grads([p], 1))
    with pytest.raises(
        ValueError, match=r"^optimizer must be one that keeps .*, got one with 'row_var' of shape \(6, 1\)"
    ):
        resize_state(optimizer, p, Parameter(torch.zeros(9, 5)))
    assert optimizer.param_groups[0]["params"] == [p]
    assert optimizer.state[p]["explore_ema"].shape == SHAPE


@pytest.mark.parametrize(
    "kept", [[torch.zeros(6, 5)], {"last": torch.zeros(6, 5)}, ([1, {"last": [torch.zeros(())]}],)], ids=str
)
def test_tensors_inside_of_something_else_are_refused_before_anything_changes(kept):
    (p,) = make_params((SHAPE,), torch.float32)
    optimizer = torch.optim.SGD([p], momentum=0.5)
    take_steps(optimizer, [p], make_grads([p], 1))
    optimizer.state[p]["history"] = kept
    text = rf"^optimizer must be one that keeps .*, got one with a {type(kept).__name__} of tensors, 'history'$"
    with pytest.raises(ValueError, match=text):
        resize_state(optimizer, p, Parameter(torch.zeros(9, 5)))
    assert optimizer.param_groups[0]["params"] == [p]
    optimizer.state[p]["history"] = [1, {"last": 2.0}]
    resize_state(optimizer, p, new := Parameter(torch.zeros(9, 5)))
    assert optimizer.state[new]["history"] == [1, {"last": 2.0}]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_stands_in_several_places_is_replaced_in_all():
    (p,) = make_params((SHAPE,), torch.float32)
    optimizer = torch.optim.SGD([p, p], momentum=0.5)
    resize_state(optimizer, p, new := Parameter(torch.zeros(9, 5)))
    assert all(q is new for q in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("name", ["ALTO", "EAdamW", "EAdamW, not in one pass"])
def test_code_that_knows_adams_names_alone_is_told_of_the_buffer_that_it_forgets(name):
    """As Gaussian splatting's does."""
    optimizer, params = trained(MAKE[name])
    old = params[1]
    stored = optimizer.state.pop(old)
    for key in ("exp_avg", "exp_avg_sq"):
        stored[key] = torch.cat((stored[key], torch.zeros(3, 5)))
    params[1] = optimizer.param_groups[0]["params"][1] = Parameter(torch.cat((old.detach(), torch.zeros(3, 5))))
    optimizer.state[params[1]] = stored
    text = (
        r"^explore_ema of a parameter of shape \(9, 5\) must have that shape, got \(6, 5\): .* thalweg\.resize_state .*"
    )
    with pytest.raises(ValueError, match=text):
        take_steps(optimizer, params, make_grads(params, 1))
