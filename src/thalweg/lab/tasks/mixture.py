"""Language models with a mixture of experts: routed tokens, stacked experts, and a loss that balances them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.lab.tasks.base import Budget
from thalweg.lab.tasks.pydoc_lm import PydocLM


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


class Mixture:
    """The loss of a language model whose experts are to be loaded evenly: to be put in front of a task of one.

    The model's output has ``router_logits``, those of each layer with shape (batch · length, experts).
    """

    chosen: ClassVar[int] = 2
    balance: ClassVar[float] = 0.02  # Mixtral's weight of the loss that balances

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross-entropy per token, and the mean over layers and examples of what balances the experts."""
        entropy = F.cross_entropy(output.logits.flatten(0, 1), target.flatten())
        uneven = [balance(layer.view(*target.shape, -1), self.chosen).mean() for layer in output.router_logits]
        return entropy + self.balance * torch.stack(uneven).mean()


class PydocMoE(Mixture, PydocLM):
    """The language model of ``pydoc-lm`` as a small Mixtral: 8 experts a layer, of which each byte is sent to two.

    Transformers keeps the experts of a layer in one parameter: :func:`thalweg.param_groups` has their norms taken for
    each expert. The metric is the cross-entropy alone.
    """

    name = "pydoc-moe"
    title = "byte-level Mixtral (2 layers, width 64, 8 experts, 2 of them a byte) on the help topics of Python"
    budgets: ClassVar = (Budget(16, 600, 2.2), Budget(256, 100, 3.0), Budget(256, 400, 2.0, "long"))
    example_cost = 900.0

    def model(self) -> nn.Module:
        """Mixtral as transformers builds it."""
        from transformers import MixtralConfig, MixtralForCausalLM

        config = MixtralConfig(
            vocab_size=256, max_position_embeddings=self.length, hidden_size=64, intermediate_size=88,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=8,
            num_experts_per_tok=self.chosen, output_router_logits=True, use_cache=False, sliding_window=None,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model: nn.Module = MixtralForCausalLM(config)
        return model
