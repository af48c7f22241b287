"""Lines of a user's, for the type checker alone: mypy reads this file, in strict mode, beside the package."""

import torch

from thalweg import ALTO, E, Lamb, lamb_defaults, lamb_schedule, paper_defaults

weights = [torch.nn.Parameter(torch.ones(2))]

ALTO(weights, lr=0.01, **paper_defaults(512))
Lamb(weights, lr=0.01, betas=(0.9, 0.99))
Lamb(weights, lr=0.01, **lamb_defaults("timm", always_adapt=True))
factor: float = lamb_schedule("deepspeed")(0)
E(torch.optim.AdamW(weights, lr=1e-3), **paper_defaults(batch_size=4096))
alpha: float = paper_defaults(4096)["alpha"]
