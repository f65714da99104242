#!/bin/bash
# Train on all GPUs of several nodes: one task for each node, in which accelerate starts a process for
# each GPU.
#
#   sbatch tools/slurm/train.sh train-llm --config llm/llama2-7b --data train.parquet --out runs/llm
#   sbatch --nodes=4 tools/slurm/train.sh train-rfm --pairs runs/pairs --out runs/refiner
#
# training.batch_size is the batch of one process. The same command goes on with a training that was
# stopped. LAUNCH has further options of accelerate launch. With weights that are divided among all
# GPUs (FSDP 2, also 4-bit ones), as LLaMA-2 70B on 4 nodes:
#   LAUNCH="--config_file tools/accelerate/fsdp.yaml" sbatch --nodes=4 tools/slurm/train.sh \
#       train-llm --config llm/llama2-70b --data train.parquet --out runs/llm \
#       training.gradient_accumulation=1
# `flowllm doctor --plan llm/llama2-70b --gpus 32` estimates the memory of each GPU.
#
# Set partition, account and resources here or on the command line; the environment in which flowllm
# is installed must be active, and --out must be a file system that all nodes share.
#SBATCH --job-name=flowllm-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
set -euo pipefail
export OMP_NUM_THREADS=1
export LAUNCH=${LAUNCH:---multi_gpu}

# The processes meet at the first node.
MEET=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MEET
export PORT=$((20000 + SLURM_JOB_ID % 20000))

# shellcheck disable=SC2016
srun bash -c '
    read -ra launch <<<"$LAUNCH"
    accelerate launch "${launch[@]}" --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
        --num_processes $((SLURM_NNODES * SLURM_GPUS_ON_NODE)) \
        --main_process_ip "$MEET" --main_process_port "$PORT" -m flowllm "$@" --resume
' flowllm-train "$@"
