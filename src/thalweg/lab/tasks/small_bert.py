"""BERT small enough for two cores, built from its configuration."""

from __future__ import annotations

from torch import nn


def small_bert(kind: str, *, vocabulary: int, length: int, labels: int, deviation: float = 0.02) -> nn.Module:
    """A BERT of two layers and width 64, without dropout.

    Args:
        kind: the class of transformers, such as ``"BertForTokenClassification"``.
        vocabulary: how many different tokens there are.
        length: most tokens of an example.
        labels: how many classes.
        deviation: of the parameters at the start; BERT-base's.
    """
    import transformers

    config = transformers.BertConfig(
        vocab_size=vocabulary, max_position_embeddings=length,
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=deviation,
    )  # fmt: skip
    config.num_labels = labels
    model: nn.Module = getattr(transformers, kind)(config)
    return model
