"""Batch normalisation whose statistics are those of all processes' examples."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation, so that training does not depend on the number of processes.

    On one process it is :class:`torch.nn.BatchNorm2d`. On R processes with n_r values a channel, of mean m_r and
    variance v_r, it normalises with ::

        m = Σ n_r m_r / Σ n_r,    v = Σ n_r (v_r + (m_r - m)²) / Σ n_r

    and differentiates through both. Unlike torch's ``SyncBatchNorm`` it runs on CPUs as well. Gradients that are
    accumulated over parts of a batch see the statistics of each part.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same shape."""
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if ranks == 1 or not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        n = torch.full_like(mean, x.numel() / x.shape[1])
        total = _summed(torch.stack([n * mean, n]))
        count, center = total[1].detach(), total[0] / total[1].detach()
        spread = _summed(n * (variance + (mean - center).square())) / count
        with torch.no_grad():
            self._follow(center, spread * count / (count - 1.0))
        scale = self.weight * (spread + self.eps).rsqrt()
        shift = self.bias - center * scale
        shape = (1, -1, 1, 1)
        normal: Tensor = x * scale.view(shape).to(x.dtype) + shift.view(shape).to(x.dtype)
        return normal

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running averages, of which evaluation makes use, as torch does."""
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def _summed(x: Tensor) -> Tensor:
    """The sum over all processes, differentiable."""
    found: Tensor = all_reduce(x)  # type: ignore[no-untyped-call]
    return found
