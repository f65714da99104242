from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import Crystal
from flowllm.errors import UserError
from flowllm.training.pairing.table import read_pairs, targets_only, write_pairs
from rfm import PairDataset, PairedCrystal, RefinerError

ARRAYS = ("base_frac_coords", "base_lattice", "target_frac_coords", "target_lattice")


def pair(seed: int, atoms: int) -> PairedCrystal:
    rng = np.random.default_rng(seed)
    return PairedCrystal(
        id=f"crystal-{seed} é",
        atomic_numbers=rng.integers(1, 119, atoms),
        base_frac_coords=rng.random((atoms, 3)),
        base_lattice=4 * np.eye(3) + rng.random((3, 3)),
        target_frac_coords=rng.random((atoms, 3)),
        target_lattice=4 * np.eye(3) + rng.random((3, 3)),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 20)), min_size=1, max_size=5))
def test_pairs_come_back_bit_for_bit(tmp_path: Path, drawn: list[tuple[int, int]]) -> None:
    pairs = [pair(seed, atoms) for seed, atoms in drawn]
    write_pairs(iter(pairs), tmp_path / "pairs.parquet")
    back = read_pairs(str(tmp_path / "pairs.parquet"))
    assert [one.id for one in back] == [one.id for one in pairs]
    for one, two in zip(pairs, back, strict=True):
        np.testing.assert_array_equal(one.atomic_numbers, two.atomic_numbers)
        assert two.atomic_numbers.dtype == np.int64
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
            assert getattr(two, name).dtype == np.float64


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_pairs([pair(0, 2)], tmp_path / "pairs.parquet")

    def broken():
        yield pair(1, 2)
        raise RuntimeError("the source ended")

    with pytest.raises(RuntimeError, match="the source ended"):
        write_pairs(broken(), tmp_path / "pairs.parquet")
    assert read_pairs(tmp_path / "pairs.parquet")[0].id == "crystal-0 é"
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.parquet"]


def test_what_holds_no_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file .*nothing.parquet; make it with"):
        read_pairs(tmp_path / "nothing.parquet")

    (tmp_path / "text.parquet").write_text("id,base\n")
    with pytest.raises(UserError, match="text.parquet is no parquet file of pairs"):
        read_pairs(tmp_path / "text.parquet")

    write_pairs([], tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="empty.parquet holds no pair"):
        read_pairs(tmp_path / "empty.parquet")

    write_pairs([pair(0, 2)], tmp_path / "cut.parquet")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.parquet is no parquet file of pairs"):
        read_pairs(tmp_path / "cut.parquet")


def altered(tmp_path: Path, column: str, values: pa.Array | None) -> Path:
    """A file of one pair, one column of which is replaced or left out."""
    path = tmp_path / "pairs.parquet"
    write_pairs([pair(0, 2)], path)
    table = pq.read_table(path)
    place = table.column_names.index(column)
    table = table.remove_column(place)
    if values is not None:
        table = table.append_column(column, values)
    pq.write_table(table, path)
    return path


def test_a_column_that_is_missing_or_of_another_type_is_refused(tmp_path: Path) -> None:
    path = altered(tmp_path, "target_lattice", None)
    with pytest.raises(UserError, match="has no column target_lattice; .*its columns: id, atomic"):
        read_pairs(path)
    for values in (pa.array(["4 0 0"]), pa.array([["a", "b"]])):
        path = altered(tmp_path, "base_lattice", values)
        with pytest.raises(UserError, match="pairs.parquet was not made by `flowllm pair`"):
            read_pairs(path)


@pytest.mark.parametrize("values", [[[0.1, 0.2]], [None]])
def test_a_damaged_row_is_refused_by_its_number(tmp_path: Path, values: list) -> None:
    path = altered(tmp_path, "base_frac_coords", pa.array(values, pa.list_(pa.float64())))
    with pytest.raises(UserError, match="pairs.parquet: row 1 is damaged"):
        read_pairs(path)


def test_a_hole_in_the_numbers_is_refused_by_the_pairs_id(tmp_path: Path) -> None:
    path = altered(tmp_path, "base_frac_coords", pa.array([[0.1, None, 0.2, 0.3, 0.4, 0.5]]))
    with pytest.raises(RefinerError, match="'crystal-0 é': base_frac_coords holds a number that"):
        PairDataset(read_pairs(path))


def test_crystals_alone_are_pairs_without_a_base() -> None:
    structure = Structure(
        Lattice.hexagonal(3.1, 5.0), ["Mg", "B"], [[0, 0, 0], [1 / 3, 2 / 3, 1.5]]
    )
    (target,) = targets_only([Crystal(id="x", structure=structure, properties={})])
    assert target.id == "x"
    assert target.base_frac_coords is None and target.base_lattice is None
    np.testing.assert_array_equal(target.atomic_numbers, [12, 5])
    np.testing.assert_array_equal(target.target_frac_coords, structure.frac_coords)
    np.testing.assert_array_equal(target.target_lattice, structure.lattice.matrix)
