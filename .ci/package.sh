#!/usr/bin/env bash
# The package as users get it: built, checked, and installed alone; then the README's code runs with it: .ci/package.sh dist
set -euo pipefail
out=$(realpath -m "${1:-dist}")
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet build twine
"$venv/bin/python" -m build --outdir "$out"  # the wheel from the sdist
"$venv/bin/twine" check --strict "$out"/*
"$venv/bin/pip" install --quiet -c constraints.txt "$out"/*.whl
sed -n '/^```python$/,/^```$/{/^```/!p}' README.md > "$venv/readme.py"
cd "$venv"  # away from the checkout
bin/python readme.py
bin/thalweg --help
bin/thalweg theory --alpha -5 --beta 0.99
