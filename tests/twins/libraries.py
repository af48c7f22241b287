"""Which libraries are run beside `Lamb`, with which of their options, and how near it has to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regimes import REGIMES, decay_of


@dataclass(frozen=True)
class Twin:
    """A library with options of its own, and the largest difference from it at any step.

    Of a parameter whose largest entry is above 1 the difference is divided by that. ``decay`` is what the library calls
    its weight decay, None where it stays what ``options`` say.
    """

    library: str
    within: float
    options: dict[str, Any] = field(default_factory=dict)
    decay: str | None = "weight_decay"
    but: tuple[str, ...] = ()  # regimes in which it is known to differ

    @property
    def name(self) -> str:
        return ", ".join([self.library, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def regimes(self) -> list[str]:
        return [regime for regime in REGIMES if regime not in self.but]

    def options_in(self, regime: str) -> dict[str, Any]:
        decay = decay_of(regime)
        return self.options if decay is None or self.decay is None else {**self.options, self.decay: decay}


EXACT = 5e-15  # both in float64
CLIPPED = 5e-8  # our clipping adds 1e-6 to the norm of the gradients
RATE = 8e-8  # lr is in float32 there
SCALARS = 7e-7  # and so are other numbers
POWERS = 2e-6  # powers of β are in float32 there, and 1 - β^k is made of them
DENOMINATOR = 2e-7  # adds 1e-6 to ‖r‖

TWINS = [
    Twin("optax", EXACT),
    Twin("optax", EXACT, {"b1": 0.8, "b2": 0.95, "eps": 1e-4}),
    Twin("tinygrad", POWERS),
    Twin("tinygrad", POWERS, {"adam": True}),
    Twin("keras", RATE),
    Twin("keras", RATE, {"global_clipnorm": 0.5}),
    Twin("paddle", SCALARS, decay="lamb_weight_decay"),
    Twin("paddle", SCALARS, {"always_adapt": True}, decay="lamb_weight_decay"),
    Twin("timm", CLIPPED),
    Twin("timm", CLIPPED, {"always_adapt": True}),
    Twin("timm", EXACT, {"max_grad_norm": None}),
    Twin("timm", EXACT, {"max_grad_norm": None, "trust_clip": True}),
    Twin("timm", EXACT, {"max_grad_norm": None, "decoupled_decay": True, "always_adapt": True}),
    Twin("timm", CLIPPED, {"decoupled_decay": True}),
    Twin("timm", EXACT, {"max_grad_norm": None, "bias_correction": False}),
    Twin("apex", CLIPPED),
    Twin("apex", CLIPPED, {"use_nvlamb": True}),
    Twin("apex", CLIPPED, {"bias_correction": False}),
    Twin("tensorflow-addons", RATE),
    Twin("tf-models", RATE, decay="weight_decay_rate"),
    Twin("mxnet", RATE, decay="wd"),
    Twin("mxnet", RATE, {"lower_bound": 0.5, "upper_bound": 10.0}, decay="wd"),
    Twin("mxnet", SCALARS, {"bias_correction": False}, decay="wd"),
    Twin("fastai", EXACT, decay="wd"),
    Twin("oneflow", EXACT, decay=None),
    Twin("oneflow", EXACT, {"do_bias_correction": False}, decay=None),
    Twin("deepspeed", EXACT),
    Twin("deepspeed", EXACT, {"bias_correction": False}),
    Twin("deepspeed", EXACT, {"max_coeff": 0.9, "min_coeff": 0.3}),
    Twin("torch_optimizer", EXACT),
    Twin("torch_optimizer", EXACT, {"debias": True}),
    Twin("torch_optimizer", EXACT, {"clamp_value": 2.0}),
    Twin("torch_optimizer", EXACT, {"adam": True}),
    Twin("pytorch_lamb", EXACT, but=("zeros",)),  # there a parameter of zeros never moves
    Twin("catalyst", EXACT),
    Twin("colossalai", EXACT),
    Twin("colossalai", EXACT, {"bias_correction": True}),
    Twin("holocron", EXACT),
    Twin("holocron", EXACT, {"scale_clip": (1.0, 5.0)}),
    Twin("pytorch_optimizer", DENOMINATOR, decay=None),
    Twin("pytorch_optimizer", DENOMINATOR, {"weight_decouple": False}),
    Twin("pytorch_optimizer", DENOMINATOR, {"adam_debias": True}),
    Twin("pytorch_optimizer", DENOMINATOR, {"adam_debias": True, "weight_decouple": False, "pre_norm": True}),
    Twin("pytorch_optimizer", EXACT, {"adam": True}, decay=None),
]
