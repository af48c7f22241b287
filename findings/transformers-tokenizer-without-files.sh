#!/usr/bin/env bash
# transformers 5.23.0 (tokenizers 0.23.3): a folder that holds a BERT's configuration and weights but none of the files of
# its tokenizer, as it is left by save_pretrained of the model alone or by a download of *.safetensors and config.json,
# still gives a tokenizer: one of the five special tokens, without an error or a warning. Every word of every text is
# [UNK], and fine-tuning goes on from there.
# Seen: "BertTokenizer 5 ['[UNK]', '[UNK]', '[UNK]']". Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
cat > "$folder/see.py" <<'PY'
import sys

from transformers import AutoTokenizer, BertConfig

BertConfig(vocab_size=30522).save_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(type(tokenizer).__name__, len(tokenizer), tokenizer.tokenize("three plain words"))
PY
seen=$(HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/see.py" "$folder/bert" 2> "$folder/errors") || { cat "$folder/errors"; exit 1; }
echo "$seen"
[ "$seen" = "BertTokenizer 5 ['[UNK]', '[UNK]', '[UNK]']" ]
