"""Formulas of a request, one by one and from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowllm.errors import UserError
from flowllm.prediction.formulas import read_formulas
from support import table


def test_formulas_are_reduced_and_keep_their_order() -> None:
    assert read_formulas(["Na4Cl4", "TiO2", "LiFePO4"]) == ["NaCl", "TiO2", "LiFePO4"]
    assert read_formulas("SrTiO3") == ["SrTiO3"]


def test_files_of_text_csv_and_parquet_hold_formulas(tmp_path: Path) -> None:
    text = tmp_path / "some.txt"
    text.write_text("# salts\nNaCl\n\n  KBr  # potassium\n", encoding="utf-8")
    rows = [{"id": 1, "formula": "MgO"}, {"id": 2, "formula": "CaO"}]
    csv = table(tmp_path / "some.csv", rows)
    parquet = table(tmp_path / "some.parquet", [{"composition": "GaAs"}])
    assert read_formulas([text, "Si", csv, parquet]) == ["NaCl", "KBr", "Si", "MgO", "CaO", "GaAs"]


def test_a_word_that_is_a_formula_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "NaCl").write_text("KBr\n")
    assert read_formulas("NaCl") == ["NaCl"]
    assert read_formulas("./NaCl") == ["KBr"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("NaCl\nNaXx\n", "line 2: unknown element Xx"),
        ("# nothing\n", "holds no formula"),
        ("NaCl\nKBr\nNa2Cl2\n", "line 3: NaCl is asked for twice"),
    ],
)
def test_a_bad_file_names_the_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "formulas.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_formulas(path)


def test_other_mistakes(tmp_path: Path) -> None:
    wrong = table(tmp_path / "wrong.csv", [{"name": "NaCl"}])
    for words, message in (
        ([], "no formula is given"),
        (["nowhere.txt"], "nowhere.txt: no such file; give a formula"),
        (["NaXx"], "unknown element Xx"),
        (["Fe3.5O4"], "the full stop may separate compounds"),
        ([wrong], "has no column formula, but name"),
    ):
        with pytest.raises(UserError, match=message):
            read_formulas(words)
