"""Random lives of optimizers: each trains as its slow twin does, or raises an error that names what is wrong.

One life is a function of its seed. Two optimizers lead it with the same data: the one that is asked for by default, and
one that steps one parameter at a time by torch's operations. What is done to both: steps, schedules that write odd
values, gradients of another shape, dtype or layout, state that is damaged in place or in a state dict, parameters that
grow. After each they agree: both have refused it, and then nothing has changed, or both have taken it, and then their
parameters are the same but for rounding.

As a script it leads the lives of a range of seeds, says what each was before it begins, and so survives nothing by
itself: a signal is seen by the process that started it.
"""

from __future__ import annotations

import copy
import inspect
import random
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Parameter

from thalweg import ALTO, E, EAdamW, Lamb

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim import Optimizer

SHAPES = [(3, 4), (5,), (), (1, 1), (0, 3), (17, 31), (4096,), (2, 3, 5, 7), (300, 130), (64, 513)]
DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]
REFUSALS = (ValueError, RuntimeError, TypeError, KeyError, IndexError)
ODD = [float("nan"), float("inf"), -1.0, 2.0, "1", None, (), (0.5,), 1j, torch.ones(2), object()]


class Life:
    """A pair of optimizers and what happens to it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.told: list[str] = []
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.rng.choice(DTYPES)
        shapes = [self.rng.choice(SHAPES) for _ in range(self.rng.randint(1, 5))]
        values = [self.numbers(shape) for shape in shapes]
        build, slow, options = self.choose()
        self.told.append(f"{build.__name__} {options} of {self.dtype} {shapes}")
        self.pair = []
        for more in ({}, slow):
            params = [Parameter(v.clone()) for v in values]
            half = len(params) // 2
            groups = [{"params": params[:half]}, {"params": params[half:]}]
            self.pair.append(build(groups, **options, **more))

    def numbers(self, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype or self.dtype)

    def choose(self) -> tuple[Callable[..., Optimizer], dict[str, Any], dict[str, Any]]:
        rng = self.rng
        options: dict[str, Any] = {"lr": rng.choice([0.01, torch.tensor(0.01)]), "weight_decay": rng.choice([0.0, 0.1])}
        exploring = {"alpha": rng.choice([-5.0, 0.5, 0.0]), "beta": rng.choice([0.9, 0.01, 0.0])}
        if abs(exploring["alpha"]) * (1.0 - exploring["beta"]) >= 1.0:
            exploring["alpha"] = 0.5
        if rng.random() < 0.35:
            if isinstance(options["lr"], torch.Tensor):
                options["lr"] = 0.01
            build = rng.choice([EAdamW, E.of(torch.optim.SGD), E.of(torch.optim.RMSprop), E.of(torch.optim.NAdam)])
            if "explore_alpha" in inspect.signature(build).parameters:  # RMSprop has an alpha of its own
                exploring = {f"explore_{name}": value for name, value in exploring.items()}
            options |= exploring | {"nonfinite": rng.choice(["propagate", "skip"])}
            return build, {"foreach": False}, options
        build = rng.choice([ALTO, Lamb])
        options |= exploring if build is ALTO else {}
        options |= {
            "betas": rng.choice([(0.9, 0.99), (0.0, 0.0), (0.5, 0.999)]),
            "trust_ratio": rng.random() < 0.7,
            "trust_clip": rng.choice([None, (0.1, 1.0)]),
            "ratio_clip": rng.choice([None, (0.1, 1.0)]),
            "bias_correction": rng.random() < 0.8,
            "decoupled_decay": rng.random() < 0.2,
            "max_grad_norm": rng.choice([None, 1.0]),
            "nonfinite": rng.choice(["skip", "raise", "propagate"]),
            "maximize": rng.random() < 0.2,
        }
        return build, {"foreach": False}, options

    def params(self, optimizer: Optimizer) -> list[Tensor]:
        return [p for group in optimizer.param_groups for p in group["params"]]

    def live(self, events: int) -> None:
        for _ in range(events):
            name = self.rng.choices(list(EVENTS), weights=[weight for weight, _ in EVENTS.values()])[0]
            self.told.append(name)
            EVENTS[name][1](self)
            self.step()

    def step(self, gradients: list[Any] | None = None) -> None:
        """One step of both on the same gradients, and the comparison."""
        if gradients is None:
            gradients = [
                None if self.rng.random() < 0.1 else self.numbers(p.shape, p.dtype) for p in self.params(self.pair[0])
            ]
        for optimizer in self.pair:
            for p, g in zip(self.params(optimizer), gradients, strict=True):
                p.grad = None
                if isinstance(g, torch.Tensor):
                    assign(p, g.clone())
        self.both(lambda o: o.step())
        for p, q in zip(*map(self.params, self.pair), strict=True):
            scale = max(1.0, q.detach().double().abs().max().item() if q.numel() else 0.0)
            tolerance = {torch.float32: 1e-4, torch.float64: 1e-10}.get(p.dtype, 0.1) * scale
            assert p.shape == q.shape
            assert torch.allclose(p.double(), q.double(), rtol=0.0, atol=tolerance, equal_nan=True), "they differ"

    def both(self, act: Callable[[Any], Any]) -> bool:
        """Let both act. Whether they have; what they refuse changes nothing."""
        errors = []
        for optimizer in self.pair:
            before = snapshot(optimizer)
            try:
                act(optimizer)
            except REFUSALS as error:
                assert str(error), "an error without a word"  # noqa: PT017
                assert same(before, snapshot(optimizer)), f"refused half way: {error!r}"  # noqa: PT017
                errors.append(error)
        assert len(errors) in (0, 2), f"one of two has raised: {errors!r}"
        if errors:
            self.told.append(f"refused: {errors[0]}")
        return not errors


def assign(p: Tensor, g: Tensor) -> None:
    """A gradient, also one that autograd would not take: code that replaces the data of a parameter leaves such."""
    try:
        p.grad = g
    except RuntimeError:
        data, p.data = p.data, g.detach().to(p.dtype) if g.layout == torch.strided else p.data
        try:
            p.grad = g.to(p.dtype)
        finally:
            p.data = data


def snapshot(optimizer: Optimizer) -> list[Any]:
    """Parameters, state and options, copied."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    options = [{k: listed(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    states = [dict(optimizer.state.get(p, {})) for p in params]
    return [*(p.detach().clone() for p in params), copied(states), [dict(o) for o in options]]


def listed(option: Any) -> Any:
    """A tuple, whatever kind of sequence an option is given as: the check of a group may write it so."""
    return tuple(option.tolist()) if isinstance(option, torch.Tensor) and option.ndim == 1 else option


def copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: copied(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [copied(v) for v in tree]
    return tree.detach().clone() if isinstance(tree, torch.Tensor) and tree.layout == torch.strided else tree


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.layout != torch.strided or b.layout != torch.strided:
            return a.layout == b.layout
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    return type(a) is type(b) and (a is b or bool(a == b) or a != a)


# What happens, and how often.


def nothing(life: Life) -> None:
    """Ordinary steps."""


def schedule(life: Life) -> None:
    rate = life.rng.choice([0.0, 0.003, 0.02])
    for optimizer in life.pair:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def odd_value(life: Life) -> None:
    """For one step, which is refused or taken by both."""
    own = ("lr", "betas", "eps", "weight_decay", "alpha", "beta", "trust_clip", "max_grad_norm", "explore_alpha")
    group = life.rng.randrange(2)
    names = [n for n in own if n in life.pair[0].param_groups[group]]
    if isinstance(life.pair[0], E):  # what the base makes of its own options is its own affair
        names = [n for n in names if n.startswith("explore")]
    name, value = life.rng.choice(names), life.rng.choice(ODD)
    life.told[-1] += f" {name}={value!r}"
    kept = [optimizer.param_groups[group][name] for optimizer in life.pair]
    for optimizer in life.pair:
        optimizer.param_groups[group][name] = value
    life.step()
    for optimizer, before in zip(life.pair, kept, strict=True):
        optimizer.param_groups[group][name] = before


def odd_gradient(life: Life) -> None:
    """Of another shape or layout than its parameter, or with a number that is none."""
    params = life.params(life.pair[0])
    gradients = [life.numbers(p.shape, p.dtype) for p in params]
    i = life.rng.randrange(len(params))
    g = gradients[i]
    kinds = {
        "longer": lambda: life.numbers((*g.shape, 3), g.dtype),
        "shorter": lambda: life.numbers((1,), g.dtype),
        "as many elements": lambda: g.reshape(-1),
        "nan": lambda: torch.full_like(g, float("nan")),
        "inf": lambda: torch.full_like(g, float("inf")),
        "huge": lambda: torch.full_like(g, torch.finfo(g.dtype).max),
        "expanded": lambda: torch.ones((), dtype=g.dtype).expand(g.shape),
        "transposed": lambda: g.t().contiguous().t() if g.ndim == 2 else g,
        "strided": lambda: torch.stack((g, g), -1)[..., 0],
    }
    kind = life.rng.choice(list(kinds))
    life.told[-1] += f" {kind} of {tuple(g.shape)}"
    gradients[i] = kinds[kind]()
    life.step(gradients)


def damage(value: Any, kind: str, life: Life) -> Any:
    if kind == "missing":
        return None
    if not isinstance(value, torch.Tensor):
        return "damaged"
    return {
        "longer": lambda: torch.zeros(*value.shape, 2, dtype=value.dtype),
        "shorter": lambda: torch.zeros(1, 1, 1, dtype=value.dtype),
        "one axis": lambda: value.reshape(-1)[None],
        "integers": lambda: value.int(),
        "complex": lambda: value.to(torch.complex64),
        "number": lambda: 3.5,
        "text": lambda: "text",
        "nothing": lambda: None,
    }[kind]()


KINDS = ["longer", "shorter", "one axis", "integers", "complex", "number", "text", "nothing", "missing"]


def damaged_load(life: Life) -> None:
    """A state dict that is damaged: refused, and nothing lost; or harmless, and loaded by both."""
    which, kind = life.rng.random(), life.rng.choice(KINDS)
    chosen = life.rng.random()

    taken = [(one, copy.deepcopy(one.state_dict())) for one in life.pair]  # which notes in groups how much was skipped

    def load(optimizer: Optimizer) -> None:
        saved = next(found for one, found in taken if one is optimizer)
        states = [s for s in saved["state"].values() if s]
        if not states:
            return
        state = states[int(which * len(states))]
        names = [n for n in sorted(state) if isinstance(state[n], torch.Tensor) and n != "step"] or sorted(state)
        name = names[int(chosen * len(names))]
        if kind == "missing":
            del state[name]
        else:
            state[name] = damage(state[name], kind, life)
        optimizer.load_state_dict(saved)

    life.told[-1] += f" {kind}"
    if isinstance(life.pair[0], E) and kind != "number":  # what its base keeps, only the base knows
        return
    life.both(load)


def loaded(life: Life) -> None:
    """Through a state dict into optimizers that are made anew."""
    for i, optimizer in enumerate(life.pair):
        saved = copy.deepcopy(optimizer.state_dict())
        fresh = copy.deepcopy(optimizer)
        fresh.state.clear()
        fresh.load_state_dict(saved)
        life.pair[i] = fresh


def damaged_state(life: Life) -> None:
    """A buffer replaced in the state of a live optimizer, for one step."""
    which, chosen, kind = life.rng.random(), life.rng.random(), life.rng.choice(["longer", "shorter", "one axis"])
    undo = []
    for optimizer in life.pair:
        params = [p for p in life.params(optimizer) if optimizer.state.get(p) and p.numel() > 1]
        if not params:
            return
        state = optimizer.state[params[int(which * len(params))]]
        names = [n for n in sorted(state) if isinstance(state[n], torch.Tensor) and state[n].ndim > 0]
        if not names:
            return
        name = names[int(chosen * len(names))]
        undo.append((state, name, state[name]))
        if isinstance(optimizer, E) and name != "explore_ema":
            continue
        state[name] = damage(state[name], kind, life)
    life.told[-1] += f" {kind} {undo[0][1]}"
    life.step([life.numbers(p.shape, p.dtype) for p in life.params(life.pair[0])])
    for state, name, value in undo:
        state[name] = value


def grown(life: Life) -> None:
    """The data of a parameter replaced by longer ones, for one step: what is kept for it no longer fits."""
    i = life.rng.randrange(len(life.params(life.pair[0])))
    kept = []
    for optimizer in life.pair:
        p = life.params(optimizer)[i]
        kept.append((p, p.data))
        p.grad = None
        p.data = torch.cat((p.data.reshape(-1), p.data.reshape(-1), torch.ones(2, dtype=p.dtype)))
    life.step([life.numbers(p.shape, p.dtype) for p in life.params(life.pair[0])])
    for p, data in kept:
        if p.data.shape != data.shape:
            p.grad = None
            p.data = data
            life_state = [o.state for o in life.pair]
            for state in life_state:
                if p in state and any(
                    isinstance(v, torch.Tensor) and v.ndim > 0 and v.shape != p.shape for v in state[p].values()
                ):
                    del state[p]  # a first step has begun at the other length


def unpickled(life: Life) -> None:
    for i, optimizer in enumerate(life.pair):
        life.pair[i] = copy.deepcopy(optimizer)


EVENTS: dict[str, tuple[int, Callable[[Life], None]]] = {
    "steps": (4, nothing),
    "schedule": (2, schedule),
    "odd value": (3, odd_value),
    "odd gradient": (3, odd_gradient),
    "damaged load": (3, damaged_load),
    "load": (1, loaded),
    "damaged state": (3, damaged_state),
    "grown": (2, grown),
    "copy": (1, unpickled),
}


def main(first: int, count: int, events: int = 8) -> None:
    torch.set_num_threads(1)
    for seed in range(first, first + count):
        print(seed, flush=True)
        life = None
        try:
            life = Life(seed)
            life.live(events)
        except BaseException:
            print("\n".join(life.told if life else ["not born"]), file=sys.stderr)
            raise
    print("done", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
