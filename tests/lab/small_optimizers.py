"""Optimizers that misbehave, each in its own way; named on command lines as ``small_optimizers.Exits``."""

import os
import sys
import time

import torch


class Plain(torch.optim.SGD):
    """SGD, but another class."""


class ZeroLr(torch.optim.SGD):
    def __init__(self, params, lr=0.0, weight_decay=0.0, momentum=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum)


class NanLr(ZeroLr):
    def __init__(self, params, lr=float("nan"), weight_decay=0.0, momentum=0.0):
        super().__init__(params, lr, weight_decay, momentum)


class _Raises(ZeroLr):
    error: BaseException

    def step(self, closure=None):
        raise self.error


class RaisesTypeError(_Raises):
    error = TypeError("not like this")


class RaisesImportError(_Raises):
    error = ImportError("no such thing")


class RaisesMemoryError(_Raises):
    error = MemoryError()


class Exits(_Raises):
    error = SystemExit(0)


class RefusesSettings(ZeroLr):
    def __init__(self, params, lr=0.1, weight_decay=0.0, momentum=0.0):
        if lr != 0.01:  # but for the probe
            raise ValueError("a lr I do not like")
        super().__init__(params, lr, weight_decay, momentum)


class Dies(ZeroLr):
    """Takes its process down, but not when it is probed."""

    def step(self, closure=None):
        if self.param_groups[0]["params"][0].shape != (2, 2):
            os._exit(int(os.environ["EXIT_CODE"]))
        return super().step(closure)


class Hangs(ZeroLr):
    def step(self, closure=None):
        if self.param_groups[0]["params"][0].shape != (2, 2):
            print("hanging", file=sys.stderr, flush=True)
            while True:
                time.sleep(1)
        return super().step(closure)


class Grows(ZeroLr):
    """Up the gradient."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=10.0)


class Poisons(ZeroLr):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.fill_(float("nan"))


class Moded(ZeroLr):
    """Holds something else than the answer while training, as Schedule-Free does; counts its changes of mode."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, momentum=0.0):
        super().__init__(params, lr, weight_decay, momentum)
        self.mode = "train"

    def _shift(self, by):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(by)

    def eval(self):
        assert self.mode == "train"
        self.mode = "eval"
        self._shift(-100.0)

    def train(self):
        assert self.mode == "eval"
        self.mode = "train"
        self._shift(100.0)

    def step(self, closure=None):
        assert self.mode == "train"
        if not self.state:
            self._shift(100.0)
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["seen"] = torch.zeros(())


class RefusesOnOneRank(ZeroLr):
    def __init__(self, params, lr=0.1, weight_decay=0.0, momentum=0.0):
        if os.environ.get("RANK") == "1" and lr != 0.01:  # but for the probe
            raise ValueError("not on this machine")
        super().__init__(params, lr, weight_decay, momentum)


class RefusesAtTheThirdStep(torch.optim.SGD):
    """On the processes whose ranks ``lr`` says: 0.01 the first, 0.1 the second, 0.11 both."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        rank = int(os.environ.get("RANK", "0"))
        if self.steps == 3 and f"{self.defaults['lr']:.2f}"[3 - rank] == "1":
            raise ValueError("no further")
        return super().step(closure)
