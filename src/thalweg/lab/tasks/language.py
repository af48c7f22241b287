"""What all language models have in common: the next token, GPT-2, and mixtures of experts with their loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.lab.tasks.base import Task
from thalweg.lab.tasks.classification import logits


class NextToken(Task):
    """Cross-entropy of the next token, to train with and to report; ``length`` is how many tokens an example has."""

    length: ClassVar[int]

    @property
    def example_tokens(self) -> int:  # type: ignore[override]
        """The ``length``."""
        return self.length

    def operations(self, model: nn.Module) -> float:
        """Six a token and parameter that it meets, forward and backward; those of attention itself are left out."""
        return 6.0 * self.length * sum(self.met(p) for p in model.parameters())

    def met(self, p: Tensor) -> float:
        """How many of a parameter's entries each token meets: all."""
        return p.numel()

    def loss(self, output: Any, target: Any) -> Tensor:
        """Cross-entropy per token."""
        loss: Tensor = F.cross_entropy(logits(output).flatten(0, 1), target.flatten())
        return loss

    def score(self, output: Any, target: Any) -> Tensor:
        """Mean cross-entropy of each window."""
        each = F.cross_entropy(logits(output).transpose(1, 2), target, reduction="none")
        return each.mean(1)

    def constant(self, targets: Tensor, like: Tensor) -> Tensor:
        """Every token is as likely as it is frequent, each counted once more than it is there."""
        size = 1 + int(torch.maximum(targets.max(), like.max()))
        return (1.0 + targets.flatten().bincount(minlength=size)).log().expand(*like.shape, -1)


def balance(router_logits: Tensor, chosen: int) -> Tensor:
    """How unevenly each example loads the experts: E Σ_e f_e P_e, at its least ``chosen`` where the load is even.

    f_e is the share of the example's tokens that are sent to expert e, P_e the mean probability that the router gives
    it (Fedus, Zoph, Shazeer 2021, equation 4). It is taken of each example by itself, as DeepSeek-V2 does, so that it
    does not depend on how a batch is cut.

    Args:
        router_logits: of one layer, shape (batch, length, experts).
        chosen: experts that each token is sent to.

    Returns:
        Shape (batch,).
    """
    probabilities = router_logits.float().softmax(-1)
    best = probabilities.topk(chosen, -1).indices
    sent = torch.zeros_like(probabilities).scatter_(-1, best, 1.0)
    return router_logits.shape[-1] * (sent.mean(1) * probabilities.mean(1)).sum(-1)


class Mixture(NextToken):
    """The loss of a language model whose experts are to be loaded evenly: to be put in front of a task of one.

    The model's output has ``router_logits``, those of each layer with shape (batch · length, experts).
    """

    chosen: ClassVar[int] = 2

    def met(self, p: Tensor) -> float:
        """Those of the experts that it is sent to, of matrices that are stacked (experts, ..., ...)."""
        return p.numel() * self.chosen / p.shape[0] if p.ndim == 3 else p.numel()

    balance: ClassVar[float] = 0.02  # Mixtral's weight of the loss that balances

    def loss(self, output: Any, target: Any) -> Tensor:
        """Cross-entropy per token, and the mean over layers and examples of what balances the experts."""
        entropy = super().loss(output, target)
        uneven = [balance(layer.view(*target.shape, -1), self.chosen).mean() for layer in output.router_logits]
        return entropy + self.balance * torch.stack(uneven).mean()


def gpt2(*, vocabulary: int, length: int, **shape: Any) -> nn.Module:
    """GPT-2 as transformers builds it, without dropout; ``shape`` is ``n_embd``, ``n_layer`` and ``n_head``.

    Its GELU, the approximation by tanh, is torch's one call in place of seven, which took a third of a small model's
    step on a CPU.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_positions=length, use_cache=False, bos_token_id=None, eos_token_id=None,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_pytorch_tanh", **shape,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def mixtral(*, vocabulary: int, length: int, chosen: int, **shape: Any) -> nn.Module:
    """Mixtral as transformers builds it; ``chosen`` experts a token, ``shape`` what else its configuration has."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=vocabulary, max_position_embeddings=length, num_experts_per_tok=chosen, output_router_logits=True,
        use_cache=False, sliding_window=None, bos_token_id=None, eos_token_id=None, **shape,
    )  # fmt: skip
    model: nn.Module = MixtralForCausalLM(config)
    return model
