"""The scripts for Slurm, with a stand-in for srun."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ase.build import bulk

from flowllm import run_sampling
from flowllm.crystals.crystal import to_structure
from flowllm.crystals.io import Crystal, write
from flowllm.energy.relaxation import relax
from run_jobs import contents
from support import ROOT

SCRIPTS = ROOT / "tools" / "slurm"


def slurm(
    folder: Path,
    name: str,
    *arguments: object,
    stubs: dict[str, str] | None = None,
    **variables: Any,
) -> subprocess.Popen[str]:
    """Start a script as Slurm does, with stubs before all other commands."""
    commands = {
        "flowllm": f'exec {sys.executable} -m flowllm "$@"',
        "scontrol": "printf 'node1\\nnode2\\n'",
        "accelerate": 'echo "$MEET $@"',
        **(stubs or {}),
    }
    for command, line in commands.items():
        (folder / command).write_text(f"#!/bin/bash\n{line}\n")
        (folder / command).chmod(0o755)
    places = (str(ROOT / "tests" / "slurm"), str(folder))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((*places, os.environ["PATH"])),
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "4001",
        **{key: str(value) for key, value in variables.items()},
    }
    return subprocess.Popen(
        ["bash", str(SCRIPTS / name), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_the_scripts_are_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert os.access(script, os.X_OK)


def test_an_array_of_jobs_samples_one_run(tmp_path: Path) -> None:
    request = {"formula": "NaCl", "seed": 3, "steps": 3, "batch_size": 2, "device": "cpu"}
    whole = run_sampling(6, out=tmp_path / "whole", progress=False, **request)
    out = tmp_path / "array"
    asked = ["-n", 6, "--formula", "NaCl", "--seed", 3, "--steps", 3, "--batch-size", 2]
    shown = []
    for job in (4, 5):
        variables = {"SLURM_ARRAY_TASK_ID": job, "SLURM_ARRAY_TASK_MIN": 4, "SLURM_NTASKS": 1}
        process = slurm(
            *(tmp_path, "sample.sh", *asked, "--device", "cpu", "--out", out),
            **variables,
            SLURM_ARRAY_TASK_COUNT=2,
        )
        shown.append(process.communicate(timeout=300)[0])
    assert "part 1/2 is done; 1 of 3 shards of the other parts are missing" in shown[0]
    assert f"{len(whole.crystals)} of 6 crystals in {out}" in shown[1]
    assert contents(out) == contents(whole.folder)


def test_the_tasks_of_a_job_relax_one_run_at_the_same_time(tmp_path: Path) -> None:
    crystals = [
        Crystal(id=f"copper-{a}", structure=to_structure(bulk("Cu", "fcc", a=a)))
        for a in (3.5, 3.6, 3.7, 3.8)
    ]
    file = write(crystals, tmp_path / "copper.jsonl")
    potential = "ase.calculators.emt:EMT"
    whole = relax(file, out=tmp_path / "whole", potential=potential, progress=False)
    out = tmp_path / "tasks"
    process = slurm(
        *(tmp_path, "relax.sh", file, "--potential", potential, "--out", out), SLURM_NTASKS=2
    )
    shown = process.communicate(timeout=300)[0]
    assert process.returncode == 0, shown
    assert f"4 of 4 crystals in {out}" in shown
    assert contents(out) == contents(whole.folder)


def test_every_node_of_a_training_launches_its_processes(tmp_path: Path) -> None:
    process = slurm(
        *(tmp_path, "train.sh", "train-llm", "--out", "my run"),
        SLURM_NTASKS=2,
        SLURM_NNODES=2,
        SLURM_GPUS_ON_NODE=4,
        SLURM_JOB_NODELIST="node[1-2]",
    )
    lines = sorted(process.communicate(timeout=60)[0].splitlines())
    assert lines == [
        f"node1 launch --multi_gpu --num_machines 2 --machine_rank {rank} --num_processes 8 "
        "--main_process_ip node1 --main_process_port 24001 -m flowllm train-llm --out my run "
        "--resume"
        for rank in (0, 1)
    ]


def free_job() -> int:
    """Return the number of a job whose port in train.sh, 20000 more, is free."""
    for number in range(os.getpid() % 10_000, 20_000):
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", 20_000 + number))
            return number
    raise AssertionError("no free port")


def test_two_nodes_train_with_divided_weights(tmp_path: Path) -> None:
    """accelerate itself, on two nodes that are this machine, each with a process on the CPU."""
    crystals = [
        Crystal(id=f"copper-{a}", structure=to_structure(bulk("Cu", "fcc", a=a)))
        for a in (3.5, 3.6, 3.7, 3.8)
    ]
    file = write(crystals, tmp_path / "copper.jsonl")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 128}
    settings = {"training.batch_size": 2, "training.max_steps": 1, "training.bf16": "false"}
    settings |= {f"model.architecture.{name}": size for name, size in sizes.items()}
    process = slurm(
        *(tmp_path, "train.sh", "train-llm", "--data", file, "--out", tmp_path / "run"),
        *("--device", "cpu", *(f"{key}={value}" for key, value in settings.items())),
        stubs={
            "accelerate": f'exec {sys.executable} -m accelerate.commands.accelerate_cli "$@"',
            "scontrol": "printf '127.0.0.1\\n'",
        },
        LAUNCH=f"--config_file {ROOT / 'tools' / 'accelerate' / 'fsdp.yaml'}",
        SLURM_JOB_ID=free_job(),
        SLURM_NTASKS=2,
        SLURM_NNODES=2,
        SLURM_GPUS_ON_NODE=1,
        SLURM_JOB_NODELIST="node[1-2]",
    )
    shown = process.communicate(timeout=300)[0]
    assert process.returncode == 0, shown[-3000:]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_bytes())
    assert state["global_step"] == 1
    # FSDP writes this file; a process for each of two nodes trained on its half of four crystals.
    assert (tmp_path / "run" / "checkpoint-1" / "pytorch_model_fsdp.bin").is_file()
    assert len(list((tmp_path / "run" / "checkpoint-1").glob("rng_state_*.pth"))) == 2
