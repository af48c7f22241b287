"""What every public optimizer takes, keeps and refuses: the one table behind all generic tests.

``test_capabilities.py`` checks that it covers every constructor argument, so that no option goes untested.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from support import LARGE, LARGE_MATRICES, MATRICES, SHAPES

from thalweg import ALTO, ESGD, E, EAdam, EAdamW, Lamb

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer


@dataclass(frozen=True)
class Option:
    """A constructor argument at a value that is not its default.

    ``effect`` is what it changes: the ``update``; only ``how`` it is computed; the ``dtype`` of the state; or it needs
    ``cuda``, and a test on CPU leaves it out.
    """

    name: str
    value: Any
    effect: Literal["update", "how", "dtype", "cuda"] = "update"
    also: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-13  # of a different "how", in float64
    key: str | None = None  # of the param group, where it is not the argument's name
    per_group: bool = True

    @property
    def kwargs(self) -> dict[str, Any]:
        return {**self.also, self.name: self.value}

    @property
    def group(self) -> dict[str, Any]:
        return {**self.also, self.key or self.name: self.value}


@dataclass(frozen=True)
class Invalid:
    """Arguments that must be refused, with the error's type and the whole of its text as a regular expression."""

    kwargs: dict[str, Any]
    text: str
    error: type[Exception] = ValueError


@dataclass(frozen=True)
class Capability:
    """One public optimizer. ``make(params, **kwargs)`` builds it; ``constructor`` is whose signature counts."""

    name: str
    make: Callable[..., Optimizer]
    constructor: Callable[..., Any]
    options: tuple[Option, ...]
    invalid: tuple[Invalid, ...]
    state: tuple[str, ...]
    wide: tuple[str, ...]  # state in float32 for a bfloat16 parameter; other tensors follow the parameter
    arguments: tuple[str, ...] = ("params",)  # those of the constructor that are no options
    counters: tuple[str, ...] = ("step",)  # state that counts steps, whatever the gradients
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    large: tuple[tuple[int, ...], ...] = LARGE
    complex: bool = True
    foreach: bool = True
    lazy: bool = True  # allocates nothing before the first step
    init_state: bool = False  # has the method
    resumes_bfloat16: bool = True  # bit for bit; not if torch rounds the base's own state on load

    def takes_foreach_with(self, option: Option | None) -> bool:
        """Whether ``foreach`` may be chosen beside this option."""
        return self.foreach and (option is None or not {"foreach", "fused"} & set(option.kwargs))

    def takes(self, name: str) -> bool:
        return any(option.name == name for option in self.options)

    def build(self, params: Any, **overrides: Any) -> Optimizer:
        return self.make(params, **overrides)


SPEED = (Option("foreach", True, "how"), Option("fused", False, "how"))

LAMB_OPTIONS = (
    Option("lr", 0.03),
    Option("lr", torch.tensor(0.0625, dtype=torch.float64), "update"),
    Option("eps", 0.1),
    Option("trust_eps", 0.5),
    Option("weight_decay", 0.3),
    Option("weight_decay", 0.0),
    Option("trust_ratio", False),
    Option("trust_ratio", "decayed", also={"weight_decay": 0.0}),
    Option("trust_clip", (0.5, 1.0)),
    Option("ratio_clip", (0.1, 0.3)),
    Option("bias_correction", False),
    Option("decoupled_decay", True, also={"weight_decay": 0.3}),
    Option("max_grad_norm", 0.5, per_group=False),
    Option("state_dtype", torch.float64, "dtype"),
    Option("state_dtype", torch.float32, "dtype"),
    Option("state_dtype", torch.bfloat16, "dtype", tolerance=0.02),
    Option("state_dtype", "8bit", "how", tolerance=1e-5),  # in float32: the layers of the table are small
    Option("state_dtype", {"exp_avg": torch.bfloat16, "exp_avg_sq": "8bit"}, "how", tolerance=0.02),
    Option("nonfinite", "propagate", "how"),
    Option("nonfinite", "raise", "how"),
    Option("stochastic_rounding", True, "how"),  # of bfloat16 alone
    Option("maximize", True),
    *SPEED,
    Option("fused", True, "how"),
    Option("capturable", True, "how", tolerance=1e-6),  # counts in float32
)

LAMB_INVALID = (
    *(
        Invalid({name: value}, rf"{name} must be a number in \[0, inf\), got {text}")
        for name in ("lr", "trust_eps", "weight_decay")
        for value, text in ((-1.0, r"-1\.0"), (float("nan"), "nan"), (float("inf"), "inf"), ("1", "'1'"))
    ),
    *(
        Invalid({"eps": value}, rf"eps must be a number in \[1\.18e-38, inf\), as 0/0 is .*, got {text}")
        for value, text in ((0.0, r"0\.0"), (-1.0, r"-1\.0"), (float("nan"), "nan"), ("1", "'1'"))
    ),
    Invalid({"lr": torch.tensor(-1.0)}, r"lr must be a number in \[0, inf\), got -1\.0"),
    Invalid({"lr": torch.ones(2)}, r"lr must be a number in \[0, inf\), got tensor\(\[1\., 1\.\]\)"),
    Invalid({"lr": True}, r"lr must be a number in \[0, inf\), got True"),
    *(
        Invalid({name: 1}, rf"{name} must be True or False, got 1")
        for name in ("maximize", "capturable", "stochastic_rounding", "bias_correction", "decoupled_decay")
    ),
    Invalid(
        {"ratio_clip": (2.0, 1.0)}, r"ratio_clip must be None or \(lo, hi\) with 0 <= lo <= hi, got \(2\.0, 1\.0\)"
    ),
    Invalid({"trust_ratio": 1}, "trust_ratio must be True, False or 'decayed', got 1"),
    Invalid({"trust_ratio": "always"}, "trust_ratio must be True, False or 'decayed', got 'always'"),
    Invalid({"foreach": 1}, "foreach must be True, False or None, got 1"),
    Invalid({"fused": "yes"}, "fused must be True, False or None, got 'yes'"),
    Invalid({"fused": True, "foreach": True}, "fused must be None or False with foreach=True, .*, got True"),
    *(
        Invalid({"trust_clip": value}, rf"trust_clip must be None or \(lo, hi\) with 0 <= lo <= hi, got {text}")
        for value, text in (
            (1.0, r"1\.0"),
            ((1.0,), r"\(1\.0,\)"),
            ((2.0, 1.0), r"\(2\.0, 1\.0\)"),
            ((-1.0, 1.0), r"\(-1\.0, 1\.0\)"),
            ((0.0, float("nan")), r"\(0\.0, nan\)"),
            (("a", 1.0), r"\('a', 1\.0\)"),
            (["0", "1e3"], r"\('0', '1e3'\)"),
            ("01", "'01'"),
            ({0.0: 1.0, 2.0: 3.0}, r"\{0\.0: 1\.0, 2\.0: 3\.0\}"),
        )
    ),
    *(
        Invalid({"max_grad_norm": value}, rf"max_grad_norm must be None or a number in \(0, inf\], got {text}")
        for value, text in ((0.0, r"0\.0"), (-1.0, r"-1\.0"), (float("nan"), "nan"), ("a", "'a'"), (True, "True"))
    ),
    *(
        Invalid(
            {"state_dtype": value},
            r"state_dtype must be None, torch\.float32, torch\.float64, torch\.bfloat16, '8bit' or a mapping of "
            rf"'exp_avg', 'exp_avg_sq'(, 'explore_ema')? to these, got {text}",
        )
        for value, text in (
            (torch.float16, r"torch\.float16"),
            (torch.int64, r"torch\.int64"),
            ("float16", "'float16'"),
            ("torch.float16", r"'torch\.float16'"),
            ("bf16", r"'bf16'; did you mean 'bfloat16'\?"),
            ("None", "'None'"),
            (8, "8"),
            ({"exp_avg": "half"}, r"\{'exp_avg': 'half'\}"),
            ({"exp_avg": torch.float16}, r"\{'exp_avg': torch\.float16\}"),
            ({"step": torch.float32}, r"\{'step': torch\.float32\}"),
            ({"exp_avg": {}}, r"\{'exp_avg': \{\}\}"),
        )
    ),
    *(
        Invalid(
            {"state_dtype": value, "capturable": True},
            rf"state_dtype must be None, torch\.float32 or torch\.float64 with capturable=True, .*, got {text}",
        )
        for value, text in (("8bit", "'8bit'"), ({"exp_avg": torch.bfloat16}, r"\{'exp_avg': torch\.bfloat16\}"))
    ),
    Invalid({"nonfinite": "ignore"}, "nonfinite must be 'skip' or 'raise' or 'propagate', got 'ignore'"),
    Invalid({"nonfinite": "raise", "capturable": True}, "nonfinite must be 'skip' or 'propagate' with .*, got 'raise'"),
    Invalid({"stochastic_rounding": True, "capturable": True}, "stochastic_rounding must be False with .*, got True"),
    *(
        Invalid({"norm_dims": value}, f"norm_dims must be None or a tuple of different axes, got {text}")
        for value, text in (
            (1, "1"),
            ((), r"\(\)"),
            ([0, 0], r"\(0, 0\)"),
            ((1.0,), r"\(1\.0,\)"),
            ("0", "'0'"),
            (["0"], r"\('0',\)"),
            ([True], r"\(True,\)"),
        )
    ),
    Invalid({"norm_dims": (0, -1)}, r"norm_dims must be different axes of every parameter of its group, .*"),
    *(
        Invalid({"betas": value}, rf"betas must be 2 numbers in \[0, 1\), got {text}")
        for value, text in (
            (0.9, r"0\.9"),
            ([0.99, 0.9, 0.99], r"\(0\.99, 0\.9, 0\.99\)"),
            ("09", "'09'"),
            (b"09", "b'09'"),
            ({0.9: 0, 0.99: 0}, r"\{0\.9: 0, 0\.99: 0\}"),
            (torch.zeros(1, 2), r"tensor\(\[\[0\., 0\.\]\]\)"),
        )
    ),
    Invalid({"betas": ["0.9", 0.99]}, r"betas\[0\] must be a number in \[0, 1\), got '0\.9'"),
)

E_ARGUMENTS = ("nonfinite", "reevaluates", "process_group")  # of the instance, not of a group

# E's own, where the instance form or E.of(base) reports them
E_INVALID = (
    Invalid({"nonfinite": "ignore"}, "nonfinite must be 'skip' or 'raise' or 'propagate', got 'ignore'"),
    Invalid({"reevaluates": 1}, "reevaluates must be True, False or None, got 1"),
    Invalid({"process_group": 1}, r"process_group must be a torch\.distributed\.ProcessGroup or None, got 1"),
    Invalid(
        {"alpha": 2.0, "beta": 0.5},
        r"alpha must be a number in \(-2, 2\), as \|alpha\| < 1/\(1 - beta\) with beta=0\.5, got 2\.0",
    ),
    Invalid({"alpha": -2.0, "beta": 0.5}, r"alpha must be a number in \(-2, 2\), .*, got -2\.0"),
    Invalid({"alpha": float("nan")}, r"alpha must be a number in \(-100, 100\), .*, got nan"),
    Invalid({"alpha": "1"}, r"alpha must be a number in \(-100, 100\), .*, got '1'"),
    Invalid({"beta": 1.0}, r"beta must be a number in \[0, 1\), got 1\.0"),
    Invalid({"beta": -0.1}, r"beta must be a number in \[0, 1\), got -0\.1"),
    Invalid({"beta": None}, r"beta must be a number in \[0, 1\), got None"),
)
E_OPTIONS = (Option("alpha", 1.5, key="explore_alpha"), Option("beta", 0.9, key="explore_beta"))
NOT_DIFFERENTIABLE = Invalid(
    {"differentiable": True}, "differentiable must be False, as E is not differentiable, got True"
)


def adam_options(weight_decay: float) -> tuple[Option, ...]:
    return (
        Option("lr", 0.03),
        Option("lr", torch.tensor(0.0625, dtype=torch.float64), "update", {"foreach": False}),
        Option("betas", (0.5, 0.8)),
        Option("eps", 0.1),
        Option("weight_decay", weight_decay),
        Option("amsgrad", True, also={"betas": (0.9, 0.3)}),
        Option("maximize", True),
        *SPEED,
        Option("fused", True, "how"),
        Option("capturable", True, "cuda"),
        *E_OPTIONS,
    )


def e_around(base: type[Optimizer], **defaults: Any) -> Callable[..., E]:
    """The instance form: E's own arguments go to E, everything else to the base."""

    def make(params: Any, **kwargs: Any) -> E:
        own = {name: kwargs.pop(name) for name in ("alpha", "beta", *E_ARGUMENTS) if name in kwargs}
        return E(base(params, **{**defaults, **kwargs}), **own)

    return make


def around(base: type[Optimizer], state: tuple[str, ...], options: tuple[Option, ...] = (), **flags: Any) -> Capability:
    defaults = flags.pop("defaults", {})
    speed = (Option("foreach", True, "how"),) if flags.get("foreach", True) else ()
    return Capability(
        name=f"E({base.__name__})",
        make=e_around(base, **defaults),
        constructor=E,
        arguments=("optimizer", *E_ARGUMENTS),
        options=(*E_OPTIONS, Option("weight_decay", 0.3), *options, *speed),
        invalid=E_INVALID,
        state=(*state, "explore_ema"),
        wide=("explore_ema",),
        **flags,
    )


TABLE: tuple[Capability, ...] = (
    Capability(
        name="ALTO",
        make=functools.partial(ALTO, lr=0.01),
        constructor=ALTO,
        options=(
            *LAMB_OPTIONS,
            Option("betas", (0.8, 0.7)),
            Option("beta", 0.9),
            Option("alpha", 20.0),
            Option("alpha", 0.0),
        ),
        invalid=(
            *LAMB_INVALID,
            Invalid({"betas": (0.99, 0.9, 0.99)}, r"betas must be 2 numbers in \[0, 1\), got \(0\.99, 0\.9, 0\.99\)"),
            Invalid({"betas": (-0.1, 0.9)}, r"betas\[0\] must be a number in \[0, 1\), got -0\.1"),
            Invalid({"betas": (0.9, float("nan"))}, r"betas\[1\] must be a number in \[0, 1\), got nan"),
            Invalid({"beta": 1.0}, r"beta must be a number in \[0, 1\), got 1\.0"),
            Invalid({"beta": None}, r"beta must be a number in \[0, 1\), got None"),
            Invalid(
                {"alpha": 100.0},
                r"alpha must be a number in \(-100, 100\), as \|alpha\| < 1/\(1 - beta\) with beta=0\.99, "
                r"got 100\.0",
            ),
            Invalid({"alpha": -1.0, "beta": 0.0}, r"alpha must be a number in \(-1, 1\), .*, got -1\.0"),
            Invalid({"alpha": None}, r"alpha must be a number in \(-100, 100\), .*, got None"),
        ),
        state=("step", "exp_avg", "exp_avg_sq", "explore_ema"),
        wide=("step", "exp_avg", "exp_avg_sq", "explore_ema"),
        init_state=True,
        arguments=("params", "norm_dims", "process_group"),
    ),
    Capability(
        name="Lamb",
        make=functools.partial(Lamb, lr=0.01),
        constructor=Lamb,
        options=(*LAMB_OPTIONS, Option("betas", (0.8, 0.7))),
        invalid=(
            *LAMB_INVALID,
            Invalid(
                {"state_dtype": {"explore_ema": torch.float32}}, r"state_dtype must be .*, got \{'explore_ema': .*\}"
            ),
            Invalid({"betas": (0.9,)}, r"betas must be 2 numbers in \[0, 1\), got \(0\.9,\)"),
            Invalid({"betas": (1.0, 0.9)}, r"betas\[0\] must be a number in \[0, 1\), got 1\.0"),
            Invalid({"betas": (0.9, "a")}, r"betas\[1\] must be a number in \[0, 1\), got 'a'"),
        ),
        state=("step", "exp_avg", "exp_avg_sq"),
        wide=("step", "exp_avg", "exp_avg_sq"),
        init_state=True,
        arguments=("params", "norm_dims", "process_group"),
    ),
    Capability(
        name="ALTO over stacked layers",
        arguments=("params", "process_group"),
        make=functools.partial(ALTO, lr=0.01, norm_dims=(-2, -1)),
        constructor=ALTO,
        options=(
            *LAMB_OPTIONS,
            Option("betas", (0.8, 0.7)),
            Option("beta", 0.9),
            Option("alpha", 20.0),
            Option("norm_dims", (0,)),
        ),
        invalid=(),
        state=("step", "exp_avg", "exp_avg_sq", "explore_ema"),
        wide=("step", "exp_avg", "exp_avg_sq", "explore_ema"),
        shapes=((2, 3, 4), (3, 4), (2, 2), (1, 2, 3)),
        large=((2, 129, 129), (3, 297, 297), (513, 65)),
        complex=False,  # a real view has an axis more
        init_state=True,
    ),
    Capability(
        name="EAdam",
        arguments=("params", *E_ARGUMENTS),
        make=functools.partial(EAdam, lr=0.01),
        constructor=EAdam,
        options=(*adam_options(0.3), Option("decoupled_weight_decay", True, also={"weight_decay": 0.3})),
        invalid=(*E_INVALID, NOT_DIFFERENTIABLE, Invalid({"lr": -1.0}, r"Invalid learning rate: -1\.0")),
        state=("step", "exp_avg", "exp_avg_sq", "explore_ema"),
        wide=("step", "explore_ema"),
    ),
    Capability(
        name="EAdamW",
        arguments=("params", *E_ARGUMENTS),
        make=functools.partial(EAdamW, lr=0.01),
        constructor=EAdamW,
        options=adam_options(0.3),
        invalid=(*E_INVALID, NOT_DIFFERENTIABLE, Invalid({"lr": -1.0}, r"Invalid learning rate: -1\.0")),
        state=("step", "exp_avg", "exp_avg_sq", "explore_ema"),
        wide=("step", "explore_ema"),
    ),
    Capability(
        name="ESGD",
        arguments=("params", *E_ARGUMENTS),
        make=functools.partial(ESGD, lr=0.01),
        constructor=ESGD,
        options=(
            Option("lr", 0.03),
            Option("lr", torch.tensor(0.0625, dtype=torch.float64), "update", {"foreach": False}),
            Option("momentum", 0.9),
            Option("dampening", 0.5, also={"momentum": 0.9}),
            Option("weight_decay", 0.3),
            Option("nesterov", True, also={"momentum": 0.9}),
            Option("maximize", True),
            *SPEED,
            Option("fused", True, "how"),
            *E_OPTIONS,
        ),
        invalid=(*E_INVALID, NOT_DIFFERENTIABLE, Invalid({"lr": -1.0}, r"Invalid learning rate: -1\.0")),
        state=("explore_ema",),
        wide=("explore_ema",),
        counters=(),
    ),
    around(torch.optim.Adagrad, ("step", "sum"), (Option("maximize", True),), lazy=False),
    around(torch.optim.RMSprop, ("step", "square_avg"), (Option("maximize", True),)),
    around(
        torch.optim.NAdam,
        ("step", "mu_product", "exp_avg", "exp_avg_sq"),
        (Option("maximize", True),),
        counters=("step", "mu_product"),
        resumes_bfloat16=False,  # mu_product
    ),
    around(torch.optim.Adafactor, ("step", "row_var", "col_var"), shapes=MATRICES, large=LARGE_MATRICES, complex=False),
    around(
        torch.optim.Muon,
        ("momentum_buffer",),
        shapes=MATRICES,
        large=LARGE_MATRICES,
        complex=False,
        foreach=False,
        counters=(),
    ),
)
CASES = tuple((entry, option) for entry in TABLE for option in (None, *entry.options))
