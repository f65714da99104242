"""Report of an evaluation: content of its page, and display in a browser."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser_support import page_in_browser
from click.testing import CliRunner
from pymatgen.core import Structure

import support
from flowllm.cli import cli
from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import Crystal
from flowllm.crystals.io import write
from flowllm.errors import UserError
from flowllm.evaluation.report import write_report
from flowllm.evaluation.report.charts import ChartGroup, histograms, parity_plots
from flowllm.evaluation.report.gallery import best_crystals
from flowllm.evaluation.results import (
    RELAXED,
    STRUCTURES,
    Evaluation,
    SetResult,
    symmetry_columns,
    write_metrics,
    write_reference,
    write_structures,
)
from flowllm.metrics.distances import properties
from flowllm.metrics.intervals import Estimate, rate
from flowllm.metrics.prototypes import prototype
from support import CSCL

SALT = support.SALT.get_primitive_structure()
EVIL = "<img src=x onerror=alert(1)></script><b>&amp;"


class Page(HTMLParser):
    """Elements of a page, and its text outside of scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.figures: list[dict[str, Any]] = []
        self._kind = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._kind = (dict(attrs).get("type") or tag) if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._kind = ""

    def handle_data(self, data: str) -> None:
        if self._kind == "application/json":
            self.figures.append(json.loads(data))
        elif not self._kind:
            self.text += data


def row(name: str, number: int, structure: Structure | None, **more: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"set": name, "id": f"c{number}", "failure": None, "valid": False}
    if structure is None:
        return known | {"failure": "unreadable"}
    formula = structure.composition.reduced_formula
    known |= {"formula": formula, "num_atoms": len(structure), "valid": True, **more}
    known |= symmetry_columns(prototype(structure))
    return known | {name: float(value[0]) for name, value in properties([structure]).items()}


def evaluation(folder: Path, *names: str, energies: bool = False, reference: str = "") -> Path:
    """Write a small folder like `flowllm evaluate`: two crystals and a failure per set."""
    folder.mkdir()
    made: list[Structure | None] = [SALT, CSCL, None]
    sets = []
    for name in names:
        measured = SetResult(name=name, num_generated=3, failures=Counter(unreadable=1))
        measured.rows = [row(name, i, structure) for i, structure in enumerate(made)]
        measured.metrics = {"valid": rate(2, 3), "novel thing": Estimate(value=None, count=0)}
        measured.notes = [f"something about {name}"]
        if energies:
            for one, above in zip(measured.rows, (0.2, 0.1, None), strict=True):
                one |= {"e_above_hull": above, "energy_per_atom": -3.0 if above else None}
                one |= {"energy_drop": above, "relaxed_rmsd": above}
        sets.append(measured)
    result = Evaluation(folder, sets)
    settings = {"samples": [{"name": n, "sha256": "0" * 64} for n in names], "targets": None}
    write_structures(result, STRUCTURES, [made] * len(sets))
    if energies:
        write_structures(result, RELAXED, [[SALT, CSCL * [2, 1, 1], None]] * len(sets))
    if reference:
        settings["reference"] = {"name": reference, "sha256": "1" * 64}
        crystals = [Crystal(id=f"r{i}", structure=SALT) for i in range(4)]
        write_reference(folder, crystals, properties([SALT] * 4), [prototype(SALT)] * 4)
    write_metrics(result, settings)
    return folder


def test_the_page_holds_the_table_the_charts_and_the_gallery(tmp_path):
    folder = evaluation(tmp_path / "out", "raw", "refined", energies=True, reference="test.csv")
    path = write_report(folder)
    page = Page(path)
    assert path == folder / "report.html"
    low, high = rate(2, 3).low, rate(2, 3).high
    for words in ("0.6667", f"[{low:.4g}, {high:.4g}]", "2 of 3", "nothing to measure it on",
                  "both validities", "something about refined", "1 of 3 missing: unreadable",
                  "test.csv (111111111111)", "lowest energy above hull", "energy above hull",
                  "free parameters",
                  "Parity with the reference", "Before and after relaxation"):  # fmt: skip
        assert words in page.text, words
    assert page.tags["figure"] == 4  # two crystals of two sets
    # CsCl has the lower energy and comes first; what is drawn is the relaxed one, two cells.
    assert page.text.index("CsCl c1") < page.text.index("NaCl c0")
    assert page.text.count("NaCl c0") == 2
    scenes = [figure for figure in page.figures if "scene" in figure["layout"]]
    assert [trace["name"] for trace in scenes[0]["data"][1:]] == ["Cl", "Cs"]
    assert max(scenes[0]["data"][0]["x"], key=lambda x: x or 0) == pytest.approx(2 * 4.12)
    before = path.read_bytes()
    assert write_report(folder).read_bytes() == before


def test_charts_of_missing_data_are_left_out(tmp_path):
    page = Page(write_report(evaluation(tmp_path / "out", "raw")))
    assert "highest space group" in page.text and "valid first" in page.text
    for words in ("Parity with", "energy above hull", "Before and after", "unique", "Relaxed"):
        assert words not in page.text, words
    failed = SetResult(name="none", num_generated=1, failures=Counter(unreadable=1))
    failed.rows = [row("none", 0, None)]
    (tmp_path / "none").mkdir()
    write_metrics(Evaluation(tmp_path / "none", [failed]), {})
    write_structures(Evaluation(tmp_path / "none", [failed]), STRUCTURES, [[None]])
    page = Page(write_report(tmp_path / "none"))
    assert "no crystal to show" in page.text and not page.figures


def test_text_of_the_user_never_becomes_markup(tmp_path):
    folder = evaluation(tmp_path / "out", EVIL, energies=True, reference=EVIL)
    page = Page(write_report(folder))
    plain = Page(write_report(evaluation(tmp_path / "plain", "a", energies=True, reference="b")))
    assert page.tags == plain.tags and len(page.figures) == len(plain.figures)
    assert EVIL in page.text
    assert EVIL not in json.dumps(page.figures)  # plotly reads some HTML in texts


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(UserError, match="flowllm evaluate"):
        write_report(tmp_path)
    folder = evaluation(tmp_path / "out", "raw", energies=True)
    (folder / RELAXED).write_bytes((evaluation(tmp_path / "b", "b") / STRUCTURES).read_bytes())
    with pytest.raises(UserError, match="evaluate again"):
        write_report(folder)
    for name in ("structures.parquet", "metrics.json"):
        (folder / name).write_bytes(b"{")
        with pytest.raises(UserError, match=f"{name} is damaged"):
            write_report(folder)


def test_distributions_hold_every_crystal_and_equal_ones_lie_on_the_diagonal():
    density = np.append(np.linspace(2, 9, 200), [500.0, np.nan])  # one absurd, one unknown
    rows = pd.DataFrame({"density": density, "valid": True})
    groups = [
        ChartGroup(name="known", rows=rows, is_reference=True),
        ChartGroup(name="made", rows=rows),
        ChartGroup(name="invalid", rows=rows.assign(valid=False)),
    ]
    (panel,) = histograms(groups)
    assert [trace.name for trace in panel.figure.data] == ["known", "made"]
    for trace in panel.figure.data:
        assert sum(trace.y[:-1]) == pytest.approx(1)
        assert 9 <= max(trace.x) < 500
    (panel,) = parity_plots(groups)
    made = panel.figure.data[1]
    assert np.array_equal(made.x, made.y)


def test_the_best_crystals_come_first():
    rows = pd.DataFrame(
        {
            "id": list("abcd"),
            "cif": [cif_text(SALT)] * 3 + [None],
            "valid": [True, True, False, True],
            "novel": pd.Series([True, True, True, None], dtype=object),
            "e_above_hull": [0.3, 0.1, -1.0, -2.0],
        }
    )
    assert [card.id for card in best_crystals("set", rows).cards] == ["b", "a", "c"]
    unknown = rows.drop(columns="e_above_hull").assign(spacegroup=[1.0, np.nan, 225.0, 1.0])
    gallery = best_crystals("set", unknown)
    assert [card.id for card in gallery.cards] == ["a", "b", "c"]
    assert gallery.order == "valid, novel first, then highest space group number"


def test_evaluate_ends_with_a_report(tmp_path):
    pytest.importorskip("smact", reason="smact is not installed")
    pytest.importorskip("matminer", reason="matminer is not installed")
    data = write(
        [Crystal(id=f"c{i}", structure=s) for i, s in enumerate((SALT, CSCL))],
        tmp_path / "data.json",
    )
    options = [f"--{name}={data}" for name in ("train", "reference", "targets")]
    out = tmp_path / "out"
    ran = CliRunner().invoke(cli, ["evaluate", str(data), *options, "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    assert str(out / "report.html") in ran.stdout
    page = Page(out / "report.html")
    assert "Parity with the reference" in page.text and page.tags["figure"] == 2
    # Every metric has its meaning.
    lines = re.findall(r'<tr><th>(.+?)</th>.*?class="meaning">(.*?)</td>',
                       (out / "report.html").read_text("utf-8"), re.DOTALL)  # fmt: skip
    assert len(lines) > 20 and not [name for name, meaning in lines if not meaning]


# Inserted at the top of the page: collects errors, and at the end turns a crystal with the mouse.
_PROBE = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => wrong.push("blocked " + event.blockedURI));
console.error = console.warn = (...words) => wrong.push(words.join(" "));
addEventListener("load", () => setTimeout(() => {
  const all = (query) => document.querySelectorAll(query);
  const crystal = all(".crystal")[0];
  const scene = crystal._fullLayout.scene._scene;
  const before = JSON.stringify(scene.getCamera().eye);
  const canvas = crystal.querySelector("canvas");
  const { left, top } = canvas.getBoundingClientRect();
  const mouse = (type, x, buttons) => canvas.dispatchEvent(new MouseEvent(type, { bubbles: true,
    cancelable: true, clientX: left + x, clientY: top + 100, buttons, button: 0, view: window }));
  mouse("mousedown", 80, 1);
  for (let x = 80; x <= 160; x += 10) mouse("mousemove", x, 1);
  mouse("mouseup", 160, 0);
  setTimeout(() => {
    const found = { wrong, rows: all("#metrics tbody tr").length, charts: all(".chart").length,
      canvases: all(".crystal canvas").length,
      drawn: [...all(".chart")].every((chart) => chart.querySelector(".main-svg")),
      turned: JSON.stringify(scene.getCamera().eye) !== before, images: all("img").length,
      fetched: performance.getEntriesByType("resource").map((entry) => entry.name) };
    document.body.replaceChildren(Object.assign(document.createElement("pre"),
      { id: "found", textContent: JSON.stringify(found) }));
  }, 1000);
}, 3000));
</script>"""


def test_a_browser_without_network_shows_the_page(tmp_path):
    path = write_report(evaluation(tmp_path / "out", EVIL, energies=True, reference="test.csv"))
    text = path.read_text("utf-8")
    path.write_text(text.replace("<title>", _PROBE + "<title>", 1), "utf-8")
    dom = page_in_browser(path.as_uri(), tmp_path / "profile")
    match = re.search(r'<pre id="found">(.+?)</pre>', dom)
    assert match is not None, dom[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert found["wrong"] == [] and found["fetched"] == []
    assert found["rows"] == 3 and found["charts"] >= 8 and found["drawn"]
    assert found["canvases"] >= 2 and found["turned"] and found["images"] == 0
