"""Your own model, data and metric in the lab: `thalweg compare own_task:Wine`, or `thalweg train own_task:Wine`."""

import torch
from sklearn.datasets import load_wine
from torch.nn import functional as F

from thalweg.lab.tasks import Budget, Metric, Rows, Splits, Task


class Wine(Task):
    title = "scikit-learn's wines, fully connected network 13-32-3"
    metric = Metric("test accuracy", "max", unit="%", low=0.0, high=100.0, resolution=100.0)
    budgets = (Budget(16, steps=60, target=95.0), Budget(96, steps=20), Budget(96, steps=120, target=95.0, name="long"))

    def splits(self):
        wines, kinds = (torch.from_numpy(array) for array in load_wine(return_X_y=True))
        wines = ((wines - wines.mean(0)) / wines.std(0)).float()
        order = torch.randperm(178, generator=torch.Generator().manual_seed(0))
        return Splits(*(Rows(wines[part], kinds[part]) for part in order.split((98, 40, 40))))

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(13, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))

    def loss(self, output, target):
        return F.cross_entropy(output, target)

    def score(self, output, target):
        return 100.0 * (output.argmax(1) == target).float()


if __name__ == "__main__":
    task = Wine()
    wines, kinds = task.splits().test[:]
    untrained = task.score(task.model()(wines), kinds).mean().item()
    print(f"{task.title}: {untrained:.0f} % untrained; `thalweg train own_task:Wine` trains it")
# prints: scikit-learn's wines, fully connected network 13-32-3: 40 % untrained; `thalweg train own_task:Wine` trains it
