"""The paper's tasks with fewer layers and shorter texts, without dropout: for two steps on a CPU."""

from thalweg.lab import models, tasks
from thalweg.lab.models.resnet import Basic, Bottleneck, PaddedShortcut, ResNet
from thalweg.lab.tasks import bert, gpt2, minilm, published_images


class CIFAR10ResNet20(published_images.CIFAR10ResNet20):
    pass  # small enough


class CIFAR100ResNet20(published_images.CIFAR100ResNet20):
    def model(self):
        return ResNet(Basic, (1, 1, 1), 8, 100, small=True, shortcut=PaddedShortcut)


class CIFAR100ResNet18(published_images.CIFAR100ResNet18):
    def model(self):
        return ResNet(Basic, (1, 1), 8, 100, small=True)


class CIFAR100VGG16(published_images.CIFAR100VGG16):
    def model(self):
        return models.VGG(((1, 4), (2, 8), (1, 8)), 32, 100, hidden=16, dropout=0.0)


class ImageNetResNet34(published_images.ImageNetResNet34):
    def model(self):
        return ResNet(Basic, (1, 1, 1, 1), 4, 1000, small=False)


class ImageNetResNet50(published_images.ImageNetResNet50):
    def model(self):
        return ResNet(Bottleneck, (1, 1, 1, 1), 4, 1000, small=False)


class CoNLL2003(bert.CoNLL2003):
    length = 72


class IMDB(bert.IMDB):
    length = 16


class MRPC(bert.MRPC):
    length = 16


class MiniLMCoNLL2003(minilm.MiniLMCoNLL2003):
    length = 72


class MiniLMMRPC(minilm.MiniLMMRPC):
    length = 16


class GPT2(gpt2.GPT2):
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2}  # noqa: RUF012
    length, vocabulary = 24, 257


class MoE(gpt2.MoE):
    shape = {  # noqa: RUF012
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_local_experts": 8,
    }  # fmt: skip
    length, vocabulary, chosen = 24, 257, 2


SHRUNK = {
    kind.__mro__[1].name: f"shrunk_tasks:{kind.__name__}"
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, tasks.Task) and kind.__module__ == __name__
}
