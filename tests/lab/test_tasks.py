import pytest
import torch
from torch.nn import functional as F

from thalweg.lab import tasks


@pytest.mark.parametrize("name", tasks.TASKS)
def test_each_task_trains_scores_and_is_reproducible(name):
    task, splits = tasks.load(name)
    batch = splits.train.__getitems__([0, 1, 2])
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        model = task.model()
        loss = task.loss(model(batch[0]), batch[1])
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert task.score(model(batch[0]), batch[1]).shape == (3,)
        losses.append(loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_batch_holds_the_rows_that_were_asked_for(name):
    _, splits = tasks.load(name)
    inputs, targets = splits.train.__getitems__([2, 0])
    for i, row in enumerate((2, 0)):
        assert torch.equal(inputs[i], splits.train[row][0])
        assert torch.equal(targets[i], splits.train[row][1])


def test_the_large_batch_of_digits_is_at_least_half_of_its_training_set():
    task, splits = tasks.load("digits")
    assert len(splits.train) / 2 <= max(task.budgets) <= len(splits.train)
    assert sum(map(len, splits)) == 1797


def test_digits_are_split_without_overlap():
    _, splits = tasks.load("digits")
    rows = [{image.numpy().tobytes() for image in part.inputs} for part in splits]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_pydoc_lm_is_split_by_topic():
    from pydoc_data.topics import topics

    task, splits = tasks.load("pydoc-lm")
    texts = [bytes(part.inputs.flatten().to(torch.uint8).tolist()).decode(errors="replace") for part in splits]
    longest = max(topics.values(), key=len)
    middle = longest[len(longest) // 2 :][:200]
    assert sum(middle in text for text in texts) == 1
    share = [len(text) / sum(map(len, topics.values())) for text in texts]
    assert share[0] > 0.6
    assert min(share) > 0.04
    assert sum(share) == pytest.approx(1.0, abs=0.01)
    assert task.length == splits.train.inputs.shape[1]


def test_language_model_targets_are_the_next_bytes():
    _, splits = tasks.load("pydoc-lm")
    assert torch.equal(splits.train.inputs[:, 1:], splits.train.targets[:, :-1])


def test_matrix_convolution_is_torchs_convolution():
    layer = tasks.MatrixConv(3, 5, stride=2)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight.view(5, 3, 3, 3), stride=2, padding=1))


def test_scores_are_the_named_metrics():
    digits = tasks.Digits()
    output = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    assert digits.score(output, torch.tensor([0, 1])).tolist() == [100.0, 0.0]
    assert tasks.Sine().score(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [1.0]])).tolist() == [0.0, 4.0]
