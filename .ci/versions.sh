#!/usr/bin/env bash
# The optimizers' tests with other versions than the pinned ones: .ci/versions.sh torch==2.11.0 torchao==0.17.0
# What is not named stays pinned. PYTHON says which Python; what follows -- goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=()
while [[ $# -gt 0 && $1 != -- ]]; do versions+=("$1"); shift; done
[[ $# -eq 0 ]] || shift

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
named=$(printf '%s\n' triton setuptools "${versions[@]}" | sed 's/[=<>!~].*//' | paste -sd '|')
grep -vE "^($named)==" constraints.txt > "$venv/constraints.txt"  # those that torch itself pins
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet 'pip>=25.1'
"$venv/bin/pip" install --quiet -c "$venv/constraints.txt" -e '.[lab,jax,lowbit]' --group dev "${versions[@]}"
"$venv/bin/python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
"$venv/bin/pytest" -n 2 --dist worksteal -p no:cacheprovider \
    tests/test_*.py tests/optax_twin tests/integrations tests/ranks --deselect tests/test_readme.py --deselect tests/test_site.py "$@"
