"""GPT-2 345M and the mixture of 85 B as they are, but with fewer and narrower layers, on a few random tokens."""

import torch

from thalweg.lab.tasks import Budget, Rows, Splits
from thalweg.lab.tasks.gpt2 import GPT2, MoE


class Few:
    budgets = (Budget(12, 3),)
    download = ""

    def splits(self):
        tokens = torch.randint(self.vocabulary, (44, 7), generator=torch.Generator().manual_seed(0))
        return Splits(*(Rows(part[:, :-1], part[:, 1:]) for part in tokens.split((24, 10, 10))))


class Narrow(Few, GPT2):
    shape = GPT2.shape | {"n_embd": 32, "n_layer": 2}


class NarrowMixture(Few, MoE):
    shape = MoE.shape | {"hidden_size": 40, "intermediate_size": 8, "num_hidden_layers": 1}
