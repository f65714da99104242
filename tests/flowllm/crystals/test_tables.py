"""CSV and parquet: words like numbers, uneven rows, delimiters, structures in a column."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowllm.crystals.io import read, write
from flowllm.crystals.tables import csv_columns
from flowllm.errors import InvalidCrystal, UserError
from support import CSCL, cif, perovskite, table

WORDS = ["NaN", "InF", "NO", "Na", "1e5"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json", ".jsonl", ".extxyz"])
@pytest.mark.parametrize("words", [["NaN"], ["InF"], WORDS])
@pytest.mark.parametrize("column", ["formula", "pretty_formula", "composition"])
def test_formulas_stay_words_in_every_format(tmp_path, suffix, words, column):
    rows = [{"id": f"m{n}", column: word, "cif": cif(CSCL)} for n, word in enumerate(words)]
    source = read(table(tmp_path / "t.csv", rows))
    path = tmp_path / f"u{suffix}"
    write(source, path)
    assert [crystal.properties[column] for crystal in read(path)] == words


def test_sodium_nitride_in_any_column_without_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f'name,gap,cif\nNaN,nan,"{cif(CSCL)}"\n')
    assert read(path)[0].properties == {"name": "NaN", "gap": "nan"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters(tmp_path, delimiter):
    path = tmp_path / "t.csv"
    pd.DataFrame([{"id": "a", "x": 1.5, "cif": cif(CSCL)}]).to_csv(path, sep=delimiter, index=False)
    (crystal,) = read(path)
    assert (crystal.id, crystal.properties) == ("a", {"x": 1.5})


def test_a_row_with_a_comma_too_many_is_named(tmp_path):
    path = tmp_path / "t.csv"
    text = cif(CSCL)
    path.write_text(
        f'id,formula,cif\na,CsCl,"{text}"\nb,Cs,Cl,"{text}"\nc,"{text}"\nd,CsCl,"{text}"\n\n'
    )
    with pytest.raises(InvalidCrystal, match=r"row 2 \(id b\): 4 fields, but the header has 3"):
        read(path)
    back = read(path, skip_invalid=True)
    assert [crystal.id for crystal in back] == ["a", "d"]
    assert back.skipped == Counter(unreadable=2)
    with pytest.raises(UserError, match="t.csv: row 2: 4 fields"):
        csv_columns(path.read_text(), "t.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('cif\n"data', "line 2"),
        ('cif,x\n"a"b,c\n', "line 2"),
        ("cif,cif\na,b\n", "the column 'cif' occurs twice"),
        ("\n", "there is no column 'cif'|it is empty"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read(path)


def test_types_of_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "i,f,b,s,e,cif\n"
        f'1,1.5,True,x,,"{cif(CSCL)}"\n'
        f'007,-2e-1,False,1,,"{cif(CSCL)}"\n'
        f'NA,nan,,y,,"{cif(CSCL)}"\n'
    )
    first, second, third = (crystal.properties for crystal in read(path))
    assert first == {"i": 1, "f": 1.5, "b": True, "s": "x"}
    assert second == {"i": 7, "f": -0.2, "b": False, "s": "1"}
    assert third == {"s": "y"}


def test_structures_in_a_column(tmp_path):
    text = json.dumps(CSCL.as_dict())
    rows = [{"id": "a", "structure": text}, {"id": "b", "structure": cif(perovskite())}]
    for suffix in (".csv", ".parquet"):
        one, two = read(table(tmp_path / f"t{suffix}", rows), reduce=False)
        assert one.structure == CSCL and len(two.structure) == 5
    plain = {
        "lattice": {"matrix": CSCL.lattice.matrix.tolist()},
        "sites": [
            {"species": [{"element": s.specie.symbol, "occu": 1}], "abc": s.frac_coords.tolist()}
            for s in CSCL
        ],
    }
    nested = pa.table({"material_id": ["a"], "structure": [plain]})
    pq.write_table(nested, tmp_path / "n.parquet")
    assert read(tmp_path / "n.parquet", reduce=False)[0].structure == CSCL
    rows[0]["structure"] = "{"
    with pytest.raises(InvalidCrystal, match="row 1 .*column 'structure': not JSON"):
        read(table(tmp_path / "t.csv", rows))
