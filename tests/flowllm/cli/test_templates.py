"""`flowllm templates build` on real crystals, and on what it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import check_mistake

from flowllm.templates.library import TemplateLibrary
from flowllm.templates.proposals import propose_templates
from support import MP20_SAMPLE, disordered, run_command, table


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_a_library_is_built_and_proposes(tmp_path: Path) -> None:
    out = tmp_path / "library.parquet"
    result = run_command("templates", "build", MP20_SAMPLE, "--out", out, "--limit", 10)
    assert (result.exit_code, result.stdout) == (0, f"10 templates in {out}\n")
    library = TemplateLibrary.read(out)
    assert library.source == MP20_SAMPLE.name
    formula = library.crystal(0).primitive().composition.formula
    assert library.ids[0] in {p.template for p in propose_templates(formula, library=library)}
    check_mistake(run_command("templates", "build", MP20_SAMPLE, "-o", out), "exists; choose")


def test_mistakes_write_nothing(tmp_path: Path) -> None:
    out = tmp_path / "library.parquet"
    rows = [{"material_id": "one", "cif": disordered().to(fmt="cif")}]
    bad = table(tmp_path / "bad.csv", rows)
    check_mistake(run_command("templates", "build", "absent.csv", "--out", out), "no such file")
    check_mistake(run_command("templates", "build", bad, "--out", out), "disordered")
    check_mistake(run_command("templates", "build", bad), "Missing option '-o' / '--out'")
    check_mistake(run_command("templates", "buidl", bad), "templates --help")
    check_mistake(run_command("templates", "build", bad, "-o", out, "--limit", 0), "--limit")
    assert not out.exists()
