"""The bases around which E is tested, one row each; ``exclusions.py`` has the others."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import heavyball
import pytorch_optimizer as po
import torch
from torch import nn
from torch.optim import SGD

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.nn import Parameter
    from torch.optim import Optimizer

heavyball.utils.compile_mode = None  # else it compiles its functions one by one, for minutes

LIBRARIES = {"torch.optim": torch.optim, "pytorch_optimizer": po, "heavyball": heavyball}
SHAPES: tuple[tuple[int, ...], ...] = ((4, 3), (4,), (3, 4))
MATRICES: tuple[tuple[int, ...], ...] = ((4, 3), (3, 4))


@dataclass(frozen=True)
class Base:
    """An optimizer and how it is driven; ``build(params, **kwargs)`` makes it."""

    library: str
    cls: str
    build: Callable[..., Optimizer]
    variant: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)  # kwargs for the training problem alone
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    closure: bool = False  # ``step`` evaluates a closure itself, or uses its loss
    needs_gradients: bool = False  # and expects ``p.grad`` to be there already
    loss_only: bool = False  # and takes nothing but the loss from it
    create_graph: bool = False  # differentiates the gradient
    modes: bool = False  # has ``train`` and ``eval``
    fused: bool = False  # has a fused form on the CPU
    fails_to_resume: str = ""  # why the base alone cannot continue from a file, as the error says it
    rounds_on_load: bool = False  # what the base alone loads lies otherwise in memory, and rounds otherwise
    compiled: bool = False  # tested in a compiled form
    train_steps: int = 15

    @property
    def name(self) -> str:
        return f"{self.library}.{self.cls} {self.variant}".rstrip()

    @property
    def foreach(self) -> bool:
        return "foreach" in inspect.signature(getattr(LIBRARIES[self.library], self.cls)).parameters


class Holder(nn.Module):
    """A module of the given parameters, for optimizers that ask for one."""

    def __init__(self, params: list[Parameter]) -> None:
        super().__init__()
        for i, p in enumerate(params):
            self.register_parameter(f"layer{i}", p)


def by_shape(cls: Any) -> Callable[..., Optimizer]:
    """Muon's matrices, and AdamW's other parameters."""

    def build(params: list[Parameter], **kwargs: Any) -> Optimizer:
        matrices, others = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
        return cls([{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}], **kwargs)

    return build


def around_sgd(cls: Any) -> Callable[..., Optimizer]:
    """A wrapper of an optimizer, around SGD."""
    return lambda params, **kwargs: cls(SGD(params, lr=0.1, momentum=0.9), **kwargs)


def sharpness(cls: Any) -> Callable[..., Optimizer]:
    """A wrapper that builds SGD itself."""
    return lambda params, **kwargs: cls(params, SGD, lr=0.1, momentum=0.9, **kwargs)


def wsam(params: list[Parameter], **kwargs: Any) -> Optimizer:
    return po.WSAM(Holder(params), params, SGD, lr=0.1, momentum=0.9, **kwargs)


def torch_base(cls: str, variant: str = "", **kwargs: Any) -> Base:
    rest = {key: kwargs.pop(key) for key in ("shapes", "closure", "fused", "train") if key in kwargs}
    compiled = not rest.get("closure", False)
    return Base("torch.optim", cls, getattr(torch.optim, cls), variant, kwargs, compiled=compiled, **rest)


TORCH = (
    torch_base("SGD", lr=0.1, fused=True),
    torch_base("SGD", "momentum", lr=0.1, momentum=0.9, fused=True),
    torch_base("SGD", "nesterov", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True),
    torch_base("Adam", lr=0.1, fused=True),
    torch_base("Adam", "amsgrad", lr=0.1, amsgrad=True, weight_decay=0.1, fused=True),
    torch_base("AdamW", lr=0.1, fused=True),
    torch_base("NAdam", lr=0.1),
    torch_base("RAdam", lr=0.1),
    torch_base("Adamax", lr=0.1),
    torch_base("Adagrad", lr=0.1, fused=True),
    torch_base("Adadelta"),
    torch_base("RMSprop", lr=0.1),
    torch_base("RMSprop", "centered", lr=0.1, centered=True, momentum=0.9, train={"lr": 0.01}),
    torch_base("Rprop", lr=0.1),
    torch_base("ASGD", lr=0.1),
    torch_base("Adafactor", lr=0.1),
    torch_base("Muon", lr=0.1, shapes=MATRICES),
    torch_base("LBFGS", lr=0.5, closure=True),
    torch_base("LBFGS", "strong_wolfe", line_search_fn="strong_wolfe", closure=True),
)

# Those of pytorch_optimizer that need nothing but their parameters.
PLAIN = """
    A2Grad ADOPT APOLLO ASGD AccSGD AdEMAMix AdaBelief AdaBound AdaDelta AdaFactor AdaGC AdaMax AdaMod AdaNorm AdaPNM
    AdaSmooth AdaTAM Adai Adalite AdamC AdamG AdamP AdamS AdamWSN Adan AggMo Aida Alice BCOS Amos Ano ApolloDQN AvaGrad
    CAME DASH DAdaptAdaGrad DAdaptAdam DAdaptAdan DAdaptLion DAdaptSGD DiffGrad DualAdam EXAdam FAdam FOCUS FTRL Fira
    FlashAdamW Fromage GaLore Grams Gravity GrokFastAdamW Kate Kron LARS LaProp Lamb Lion MADGRAD MARS MSVAG Nero
    NovoGrad PAdam PID PNM Prodigy QHAdam QHM RACS RAdam Ranger ROSE SGDP SGDSaI SGDW SM3 SOAP SPAM SPlus SRMM SWATS
    Shampoo SignSGD SimplifiedAdEMAMix StableAdamW StableSPAM TAM Tiger VSGD Yogi
"""

OPTIONS: dict[str, dict[str, Any]] = {
    "DAdaptAdam": {"train_steps": 30},  # which takes as many to find its rate
    "DAdaptAdan": {"train_steps": 30},
    "Ranger": {"train": {"lr": 0.01}, "train_steps": 100},
    "Shampoo": {"kwargs": {"matrix_eps": 0.1}},
}


def po_base(cls: str, variant: str = "", build: Any = None, **fields: Any) -> Base:
    return Base("pytorch_optimizer", cls, build or getattr(po, cls), variant, **fields)


MUONS = ("AdaGO", "AdaMuon", "Muon", "MuonClip", "NorMuon")
EMOTIONAL = ("EmoFact", "EmoLynx", "EmoNavi")  # their learning rate follows the loss
SCHEDULE_FREE = ("ScheduleFreeAdamW", "ScheduleFreeRAdam", "ScheduleFreeSGD")

PYTORCH_OPTIMIZER = (
    *(po_base(cls, **OPTIONS.get(cls, {})) for cls in PLAIN.split()),
    *(po_base(cls, build=by_shape(getattr(po, cls))) for cls in MUONS),
    *(po_base(cls, closure=True, needs_gradients=False) for cls in EMOTIONAL),
    *(po_base(cls, modes=True) for cls in SCHEDULE_FREE),
    po_base("AdaHessian", create_graph=True),
    po_base("SophiaH", create_graph=True, kwargs={"update_period": 2}),
    po_base("AdamMini", build=lambda params, **kwargs: po.AdamMini(Holder(params), **kwargs), train={"lr": 0.01}),
    po_base("AdaShift", kwargs={"keep_num": 2}, fails_to_resume="Unsupported global: GLOBAL collections.deque"),
    po_base("AliG", closure=True, loss_only=True, kwargs={"max_lr": 0.5}),
    po_base(
        "BSAM",
        closure=True,
        needs_gradients=True,
        kwargs={"num_data": 1000, "lr": 0.01},
        train={"num_data": 10**6, "lr": 0.1, "rho": 0.001, "weight_decay": 1.0},
    ),
    po_base("Conda", fails_to_resume="Unsupported global: GLOBAL pytorch_optimizer.*GaLoreProjector"),
    po_base("LoRARite", kwargs={"update_skipping": 0.0}, shapes=MATRICES),
    po_base("Ranger21", kwargs={"num_iterations": 100}),
    po_base("SaRA", kwargs={"threshold": 10.0, "lr": 0.01}),
    po_base("ScalableShampoo", fails_to_resume="Unsupported global: GLOBAL pytorch_optimizer.*PreConditioner"),
    po_base("SCION", fails_to_resume="Unsupported global: GLOBAL pytorch_optimizer.*LMONorm"),
    po_base("SCIONLight", fails_to_resume="Unsupported global: GLOBAL pytorch_optimizer.*LMONorm"),
    po_base("SpectralSphere", shapes=MATRICES, kwargs={"solver_max_iterations": 5}),
    # Wrappers, which the package's list leaves out.
    po_base("SAM", build=sharpness(po.SAM), closure=True, needs_gradients=True),
    po_base("SAM", "adaptive", sharpness(po.SAM), closure=True, needs_gradients=True, kwargs={"adaptive": True}),
    po_base("LookSAM", build=sharpness(po.LookSAM), closure=True, needs_gradients=True, kwargs={"k": 2}),
    po_base("FriendlySAM", build=sharpness(po.FriendlySAM), closure=True, needs_gradients=True),
    po_base("WSAM", build=wsam, closure=True),
    po_base("Lookahead", build=around_sgd(po.Lookahead), kwargs={"k": 2}),
    po_base("Magma", build=around_sgd(po.Magma)),
    po_base("OrthoGrad", build=around_sgd(po.OrthoGrad)),
    po_base("PCGrad", build=around_sgd(po.PCGrad)),
    po_base("ScheduleFreeWrapper", build=around_sgd(po.ScheduleFreeWrapper), modes=True),
    po_base("TRAC", build=around_sgd(po.TRAC), kwargs={"s_prev": 0.1}),
)

HEAVYBALL_NAMES = """
    SGD AdamW NAdam AdEMAMix UnscaledAdamW SUDSAdamW Scion AdamC RMSprop HyperBallAdamW MuonAdamW SFAdamW MSAMLaProp
    ADOPT Muon LaProp MuonLaProp SOAP KLSOAP KLShampoo SOAPNAdam SOAPAdEMAMix SignLaProp SOLP HeavySOAP HeavyKLSOAP
    HeavyKLShampoo HeavySOAPNAdam HeavySOAPAdEMAMix HeavySOLP OrthoLaProp LaPropOrtho PSGDKron LATHER PSGDPRO QSGD
    PSGDLRA
"""
HEAVYBALL = tuple(
    Base(
        "heavyball",
        cls,
        getattr(heavyball, cls),
        kwargs={"consume_grad": False},
        modes=cls in ("SFAdamW", "MSAMLaProp"),
        rounds_on_load=cls in ("PSGDKron", "LATHER", "PSGDPRO", "QSGD"),
    )
    for cls in HEAVYBALL_NAMES.split()
)


def classes(library: str) -> set[str]:
    """The optimizers that a library has itself."""
    module = LIBRARIES[library]
    found = {n: o for n, o in vars(module).items() if isinstance(o, type) and issubclass(o, torch.optim.Optimizer)}
    return {
        name
        for name, cls in found.items()
        if cls is not torch.optim.Optimizer
        and not name.startswith("_")
        and (library == "torch.optim" or getattr(torch.optim, name, None) is not cls)
        and (library != "heavyball" or name in heavyball.__all__)
    }


BASES = (*TORCH, *PYTORCH_OPTIMIZER, *HEAVYBALL)
