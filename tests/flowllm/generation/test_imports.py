"""Sampling and refining import none of the modules that take long to import."""

from __future__ import annotations

from pathlib import Path

from cli_support import process

ABSENT = {
    *("transformers", "accelerate", "peft", "bitsandbytes", "torch_geometric"),
    *("sympy", "torch._dynamo", "torch._inductor", "matgl", "chgnet", "matplotlib"),
    *("pymatgen.io.cif", "pymatgen.io.vasp", "scipy.stats", "geoopt"),
}


def test_sampling_does_not_import_transformers(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = process("sample", "-n", 2, "--formula", "NaCl", "--out", out, "--seed", 1)
    assert (out / "samples.parquet").exists(), ended.stderr
    assert "torch" in ended.modules
    assert sorted(ABSENT & ended.modules) == []
