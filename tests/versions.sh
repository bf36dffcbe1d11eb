#!/usr/bin/env bash
# Runs tests with the oldest or the newest versions that setup.cfg allows, in an environment of its own.
#   tests/versions.sh oldest|newest [test files]
# torch stays the one of constraints.txt: other builds for CPUs are not on every package index.
set -euo pipefail
cd "$(dirname "$0")/.."
which=$1
shift
tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
  tests=(tests/test_surroundings.py tests/test_exactness.py tests/test_ea_t5.py tests/test_evolve.py tests/test_remote_code.py)
fi
environment=.venv-$which
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep '^torch==' constraints.txt > "$constraints"
if [ "$which" = oldest ]; then
  # The lower bounds of what models and training import.
  sed -nE 's/^ +(transformers|huggingface_hub|accelerate|datasets|peft) >=([0-9.]+).*/\1==\2/p' setup.cfg \
    | sed -E '/==[0-9]+\.[0-9]+$/s/$/.*/' >> "$constraints"
fi
python3 -m venv --clear "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints" -e ".[tests]"
"$environment/bin/python" -c '
import importlib.metadata as metadata
print(*(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "huggingface_hub", "accelerate", "datasets", "peft")), sep=", ")'
"$environment/bin/python" -m pytest -q -n 2 --dist loadgroup "${tests[@]}"
