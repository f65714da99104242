#!/usr/bin/env bash
# Build sdist and wheel into dist/, install the wheel without its dependencies into an empty folder,
# and use it from there: bundled models, templates and recipes must be in it.
#
#     tools/check_package.sh .venv/bin/python
set -euo pipefail
python=$(realpath --no-symlinks "$1")
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

rm -rf dist build/package
mkdir -p build/package/source
"$python" -m hatchling build
# The wheel is built from the sdist, so the sdist is complete.
tar --extract --file dist/*.tar.gz --directory build/package/source --strip-components 1
rm dist/*.whl
(cd build/package/source && "$python" -m hatchling build --target wheel --directory ../../../dist)
du --apparent-size --human-readable dist/*
largest=40000000  # bytes; the package index takes 100 MB
test -z "$(find dist -size +${largest}c)"

"$python" -m pip install --quiet --no-deps --target build/package/installed dist/*.whl
cd build/package
export PYTHONPATH=$PWD/installed
"$python" - <<'EOF'
import os

import flowllm
import llm_prior
import rfm
from flowllm.templates.proposals import propose_templates
from flowllm.training.recipes import named_recipes

for module in (flowllm, llm_prior, rfm):
    assert module.__file__.startswith(os.environ["PYTHONPATH"]), module.__file__
assert propose_templates("NaCl", n=1)
assert "llm/wyckoff" in named_recipes(), named_recipes()
EOF
"$python" -m flowllm sample -n 2 --formula NaCl -o run
"$python" -m flowllm doctor
