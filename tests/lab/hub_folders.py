"""A folder as ``THALWEG_DATA`` names it, with a few rows of each published data set in its real schema."""

import io
import string

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from thalweg.records.errors import UserError

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
NER = ["EU", "rejects", "German", "call", "to", "boycott", "British", "lamb", "Peter", "Blackburn", "unaffable"]
WORDS = ["the", "film", "was", "good", "bad", "not", "a", "quite", "plot", "and", "actors", "never", "ever"]


def pictures(count, size, seed):
    rng = np.random.default_rng(seed)
    return [PILImage.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def sentence(rng, length=9):
    return " ".join(rng.choice(WORDS, length))


def entities(rng, length):
    """Tags in IOB2 as the published numbers: an entity's first word has an odd one, its others the next even one."""
    tags = [0]
    for _ in range(length):
        more = [tags[-1] + tags[-1] % 2] if tags[-1] else []
        tags.append(int(rng.choice([0, 1, 3, 5, 7, *more * 5])))
    return tags[1:]


def write(root, where, split, columns, features):
    path = root / where / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)


def numbered(count):
    return ClassLabel(names=[f"class {i}" for i in range(count)])


def published_images(root):
    for split, count in (("train", 30), ("test", 8)):
        img = pictures(count, (32, 32), count)
        labels = [i % 10 for i in range(count)]
        write(root, "uoft-cs/cifar10/plain_text", split, {"img": img, "label": labels},
              {"img": Image(), "label": numbered(10)})  # fmt: skip
        write(root, "uoft-cs/cifar100/cifar100", split, {"img": img, "fine_label": labels, "coarse_label": labels},
              {"img": Image(), "fine_label": numbered(100), "coarse_label": numbered(20)})  # fmt: skip
        grey = [one.convert("L").resize((28, 28)) for one in img]
        write(root, "zalando-datasets/fashion_mnist/fashion_mnist", split, {"image": grey, "label": labels},
              {"image": Image(), "label": numbered(10)})  # fmt: skip
    for split, count in (("train", 16), ("validation", 3)):
        img = [*pictures(count - 1, (90, 120), count), pictures(1, (70, 60), 0)[0].convert("L")]
        write(root, "ILSVRC/imagenet-1k/data", split, {"image": img, "label": [*range(count)]},
              {"image": Image(), "label": numbered(1000)})  # fmt: skip


def texts(root):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 4), ("test", 5)):
        tokens = [[str(word) for word in rng.choice(NER, 3 + i % 5)] for i in range(count)]
        tags = [entities(rng, len(words)) for words in tokens]
        write(root, "lhoestq/conll2003/data", split,
              {"id": [*map(str, range(count))], "tokens": tokens,
               **dict.fromkeys(("pos_tags", "chunk_tags", "ner_tags"), tags)},
              {"id": Value("string"), "tokens": List(Value("string")),
               **{name: List(Value("int64")) for name in ("pos_tags", "chunk_tags", "ner_tags")}})  # fmt: skip
        labels = [i % 2 for i in range(count)]
        write(root, "nyu-mll/glue/mrpc", split,
              {"sentence1": [sentence(rng) for _ in labels], "sentence2": [sentence(rng) for _ in labels],
               "label": labels, "idx": [*range(count)]},
              {"sentence1": Value("string"), "sentence2": Value("string"),
               "label": ClassLabel(names=["not_equivalent", "equivalent"]), "idx": Value("int32")})  # fmt: skip
    reviews = [sentence(rng, 30) for _ in range(28)]
    for split, part in (("train", [*reviews[:20], reviews[0], reviews[25]]), ("test", reviews[20:])):  # two are twice
        labels = [2 * i // len(part) for i in range(len(part))]  # sorted, as published
        write(root, "stanfordnlp/imdb/plain_text", split, {"text": part, "label": labels},
              {"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})  # fmt: skip
    documents = [" ".join("".join(rng.choice([*string.ascii_letters], 4)) for _ in range(60)) for _ in range(12)]
    write(root, "spacerini/gpt2-outputs/data", "train",
          {"id": [*range(14)], "ended": [True] * 14, "length": [60] * 14, "text": [*documents, documents[3], " "]},
          {"id": Value("int64"), "ended": Value("bool"), "length": Value("int64"),
           "text": Value("string")})  # fmt: skip


def weights(root):
    """Tiny models and tokenizers under the published names."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_letters]
    vocabulary += [f"##{letter}" for letter in string.ascii_letters] + ["un", "##aff", "##able"]
    vocabulary += [word for word in WORDS if word not in vocabulary]
    for name in ("google-bert/bert-base-cased", "google-bert/bert-base-uncased", ENCODER):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        lower = not name.endswith("-cased")
        transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=lower).save_pretrained(folder)
        config = transformers.BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        transformers.BertModel(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({**{c: i for i, c in enumerate(alphabet)}, "<|endoftext|>": 256}, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    made.save_pretrained(root / "openai-community/gpt2")


def folder(root):
    """All of it."""
    published_images(root)
    texts(root)
    weights(root)
    return root


CIFAR = "uoft-cs/cifar10/plain_text"
TEN = numbered(10)


def images(root, label=TEN, count=6, splits=("train", "test"), edit=lambda columns: None):
    for split in splits:
        columns = {"img": pictures(count, (32, 32), count), "label": [i % 5 for i in range(count)]}
        edit(columns)
        write(root, CIFAR, split, columns, {"img": Image(), "label": label})


def refused(load):
    """The message of what is refused, in one line."""
    with pytest.raises(UserError) as error:
        load()
    message = str(error.value)
    assert "\n" not in message
    return message


def stored(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}
