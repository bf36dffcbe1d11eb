#!/usr/bin/env bash
# Runs tests with the oldest or the newest versions that setup.cfg allows, in an environment of its own.
#   tests/versions.sh oldest|newest [test files]
#   tests/versions.sh quick
# quick: only another Transformers beside the environment that is there, and only what a renamed cache would break. It takes
# minutes, and no version beyond setup.cfg's range.
# torch stays the one of constraints.txt: other builds for CPUs are not on every package index.
set -euo pipefail
cd "$(dirname "$0")/.."
which=$1
shift
if [ "$which" = quick ]; then
  python=${PYTHON:-.venv/bin/python}
  read -r oldest untried <<< "$(sed -nE 's/^ +transformers >=([0-9.]+), <([0-9.]+)$/\1 \2/p' setup.cfg)"
  for range in "==$oldest.*" ">=$oldest,<$untried"; do
    folder=$(mktemp -d)
    if "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "transformers$range"; then
      PYTHONPATH="$folder" "$python" -c 'import transformers; print("transformers", transformers.__version__)'
      PYTHONPATH="$folder:$PWD" "$python" -m pytest -q tests/test_surroundings.py tests/test_ea_t5.py tests/test_evolve.py \
        -k "cache_changes_no_generated_token or without_the_cache_s_keyword or keys_beyond or prompt_lookup"
    else
      echo "transformers$range cannot be had here: not run."
    fi
    rm -rf "$folder"
  done
  exit
fi
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
