"""Residual networks and VGG: published parameter counts, layers against formulas; GPT-2 against transformers' own."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.lab import models
from thalweg.lab.models.resnet import PaddedShortcut
from thalweg.lab.tasks.language import gpt2


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: models.resnet20(10), 269_722),  # He et al.: .27 M; with option B it would be 272,474
        (lambda: models.resnet20(100), 275_572),
        (models.resnet18, 11_689_512),  # torchvision's
        (models.resnet34, 21_797_672),
        (models.resnet50, 25_557_032),
        (models.resnet18_cifar, 11_220_132),
        (lambda: models.vgg16(10), 33_726_378),  # the paper's 33.73 M
        (lambda: models.vgg16(100), 34_095_108),
    ],
)
def test_parameter_counts_are_the_published_ones(make, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


@pytest.mark.parametrize(
    ("make", "size", "maps"),
    [
        (models.resnet20, 32, [(16, 32), (32, 16), (64, 8)]),
        (models.resnet18_cifar, 32, [(64, 32), (128, 16), (256, 8), (512, 4)]),
        (models.resnet50, 224, [(256, 56), (512, 28), (1024, 14), (2048, 7)]),
    ],
)
def test_stages_have_the_papers_widths_and_sizes(make, size, maps):
    with torch.device("meta"):
        model, x = make(), torch.empty(2, 3, size, size)
        x = model.stem(x)
        for stage, (width, side) in zip(model.stages, maps, strict=True):
            x = stage(x)
            assert x.shape == (2, width, side, side)


def test_option_a_takes_every_second_pixel_and_pads_channels_with_zeros():
    x = torch.randn(2, 16, 6, 6)
    found = PaddedShortcut(16, 32, 2)(x)
    assert torch.equal(found[:, 8:24], x[:, :, ::2, ::2])
    assert found[:, :8].count_nonzero() == found[:, 24:].count_nonzero() == 0


def test_convolutions_start_with_hes_variance():
    torch.manual_seed(0)
    for model in (models.resnet18_cifar(), models.vgg16()):
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
                n = module.out_channels * math.prod(module.kernel_size)
                assert module.weight.var().item() == pytest.approx(2 / n, rel=0.05)


def test_a_basic_block_is_two_convolutions_around_which_the_image_passes():
    torch.manual_seed(1)
    block = models.resnet20().stages[0][0].eval()  # of statistics 0 and 1
    x = torch.randn(2, 16, 5, 5)
    first, second = block.body[0].weight, block.body[3].weight
    shrink = (1 + 1e-5) ** -0.5
    inner = F.relu(F.conv2d(x, first, padding=1) * shrink)
    torch.testing.assert_close(block(x), F.relu(x + F.conv2d(inner, second, padding=1) * shrink))


def test_batch_normalisation_of_one_process_is_torchs():
    x = torch.randn(4, 3, 5, 5)
    ours, torchs = models.GlobalBatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.equal(ours(x), torchs(x))
    assert torch.equal(ours.running_var, torchs.running_var)


def test_gpt2_computes_what_transformers_own_does():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = gpt2(vocabulary=50, length=12, n_embd=16, n_layer=2, n_head=2)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10.0)  # so that a GELU of another formula would be seen
    config = transformers.GPT2Config(vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2)
    published = transformers.GPT2LMHeadModel(config).eval()  # with seven operations a GELU, and dropout
    published.load_state_dict(model.state_dict())
    tokens = torch.randint(50, (4, 12))
    torch.testing.assert_close(model(tokens).logits, published(tokens).logits, rtol=1e-5, atol=1e-6)
