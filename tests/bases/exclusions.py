"""The optimizers around which E is not tested, each with its reason and a check that the reason is true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import heavyball
import pytest
import pytorch_optimizer as po
import torch
from catalogue import Holder
from torch.nn import Parameter
from torch.optim import SGD

from thalweg import E

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Excluded:
    library: str
    cls: str
    reason: str
    check: Callable[[], None]

    @property
    def name(self) -> str:
        return f"{self.library}.{self.cls}"


def some_params(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(torch.ones(3, 2, dtype=dtype)), Parameter(torch.ones(2, dtype=dtype))]


def backward(params: list[Parameter]) -> torch.Tensor:
    loss = sum(p.square().sum() for p in params)
    loss.backward()
    return loss.detach()


def sparse() -> None:
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    optimizer = E(torch.optim.SparseAdam(embedding.parameters()))
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="E needs dense gradients"):
        optimizer.step()
    E(torch.optim.SparseAdam(embedding.parameters()), alpha=0.0).step()
    params = some_params()
    backward(params)
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        torch.optim.SparseAdam(params).step()


def needs_einops() -> None:
    with pytest.raises(ImportError, match="einops"):
        po.DeMo(some_params())


def needs_a_process_group() -> None:
    with pytest.raises(ValueError, match="Default process group has not been initialized"):
        po.DistributedMuon([{"params": some_params(), "use_muon": True}])


def steps_in_backward(cls: type) -> Callable[[], None]:
    def check() -> None:
        params = some_params()
        cls(Holder(params), lr=0.1)
        backward(params)
        assert any(p.grad is None for p in params)  # before any step
        assert not all(torch.equal(p, torch.ones_like(p)) for p in params)

    return check


def closure_returns_two() -> None:
    params = some_params()
    scheduler = po.lr_scheduler.proportion.ProportionScheduler
    base = SGD(params, lr=0.1)
    optimizer = po.GSAM(params, base, Holder(params), scheduler(torch.optim.lr_scheduler.StepLR(base, 1), 0.1, 0.1))
    with pytest.raises(TypeError, match="iteration over a 0-d tensor"):
        optimizer.step(torch.enable_grad()(lambda: backward(params)))
    inside = E(SGD(params, lr=0.1), 0.5, 0.5)
    optimizer = po.GSAM(params, inside, Holder(params), scheduler(torch.optim.lr_scheduler.StepLR(inside, 1), 0.1, 0.1))
    optimizer.step(torch.enable_grad()(lambda: (None, backward(params))))
    assert all("explore_ema" in inside.state[p] for p in params)


def has_no_groups() -> None:
    with pytest.raises(AttributeError, match=r"param_groups|defaults"):
        E(po.SafeFP16Optimizer(SGD(some_params(torch.float16), lr=0.1)))
    params = some_params(torch.float16)
    inside = E(SGD(params, lr=0.1), 0.5, 0.5)
    optimizer = po.SafeFP16Optimizer(inside)
    optimizer.backward(sum(p.sum() for p in params) / 4)
    optimizer.step()
    assert all((s["explore_ema"] == 0.125).all() for s in inside.state.values())  # half the gradient, without the scale


def saves_its_parts_alone(build: Callable[[list[Parameter]], torch.optim.Optimizer]) -> Callable[[], None]:
    def check() -> None:
        params = some_params()
        base = build(params)
        optimizer = E(base, 0.5, 0.5, reevaluates=True if isinstance(base, heavyball.SAMWrapper) else None)

        def closure() -> torch.Tensor:
            for p in params:
                p.grad = None
            return backward(params)

        optimizer.step(closure)
        assert all("explore_ema" in optimizer.state[p] for p in params)
        with pytest.raises(RuntimeError, match=f"^{type(base).__name__} leaves E's buffer out of its state dict"):
            optimizer.state_dict()
        if isinstance(base, heavyball.SplitOpt):
            split = heavyball.SplitOpt([{"params": params, "optimizer": E.of(heavyball.SGD), "explore_alpha": 0.5}])
            closure()
            split.step()
            assert repr(split.state_dict()).count("explore_ema") == len(params)

    return check


EXCLUDED = (
    Excluded("torch.optim", "SparseAdam", "takes sparse gradients alone, and E dense ones where α is not 0", sparse),
    Excluded("pytorch_optimizer", "DeMo", "needs einops, and a process group", needs_einops),
    Excluded("pytorch_optimizer", "DistributedMuon", "needs a process group", needs_a_process_group),
    Excluded(
        "pytorch_optimizer",
        "LOMO",
        "steps within backward, gradient by gradient, so that none is there in `step`",
        steps_in_backward(po.LOMO),
    ),
    Excluded(
        "pytorch_optimizer",
        "AdaLOMO",
        "steps within backward, gradient by gradient, so that none is there in `step`",
        steps_in_backward(po.AdaLOMO),
    ),
    Excluded(
        "pytorch_optimizer",
        "GSAM",
        "its closure returns outputs and loss, no closure of torch's; give it E as its base optimizer instead",
        closure_returns_two,
    ),
    Excluded(
        "pytorch_optimizer",
        "SafeFP16Optimizer",
        "has no parameter groups, being a scaler of losses; give it E as its optimizer instead",
        has_no_groups,
    ),
    Excluded(
        "heavyball",
        "SplitOpt",
        "its state dict is that of its parts, so E's buffer would not be saved; give it E.of(...) as parts instead",
        saves_its_parts_alone(lambda ps: heavyball.SplitOpt([{"params": ps, "optimizer": heavyball.SGD}])),
    ),
    Excluded(
        "heavyball",
        "SAMWrapper",
        "its state dict is that of its part, so E's buffer would not be saved",
        saves_its_parts_alone(lambda ps: heavyball.SAMWrapper(ps, heavyball.SGD)),
    ),
)
