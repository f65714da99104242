#!/bin/bash
# Relax crystals into one run folder with all tasks of a Slurm job, or of an array of jobs.
#
#   sbatch tools/slurm/relax.sh runs/many --out runs/relaxed          # arguments of flowllm relax
#   sbatch --array=1-16 tools/slurm/relax.sh crystals.parquet --out runs/more
#
# Every task computes a part of the shards (--part) and ends; the last one writes the results. After a
# failure or a time limit the same command goes on, also with other numbers of tasks and jobs (a
# contiguous range of the array). If all jobs have ended without results, as on file systems that
# show new files late: flowllm merge runs/relaxed.
#
# Set partition, account and resources here or on the command line; the environment in which flowllm
# is installed must be active. On GPUs: --ntasks-per-node=8 --gpus-per-task=1.
#SBATCH --job-name=flowllm-relax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=16
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=04:00:00
set -euo pipefail
export OMP_NUM_THREADS=1

# srun sets SLURM_PROCID and SLURM_NTASKS for each task. Exit code 1 of the task that ends last: some
# crystals were not made, as the results say.
# shellcheck disable=SC2016
srun bash -c '
    job=$((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0}))
    parts=$((${SLURM_ARRAY_TASK_COUNT:-1} * SLURM_NTASKS))
    exec flowllm relax "$@" --part "$((job * SLURM_NTASKS + SLURM_PROCID + 1))/$parts"
' flowllm-relax "$@"
