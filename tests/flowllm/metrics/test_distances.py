from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm.metrics import distances
from flowllm.metrics.distances import properties

SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
CSCL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))


def test_properties_by_hand_and_space_groups_only_once(monkeypatch):
    first = properties([SALT, CSCL, SALT])
    assert first["spacegroup"].tolist() == [225, 221, 225]
    assert first["num_elements"].tolist() == [2, 2, 2]
    assert first["volume_per_atom"] == pytest.approx([5.69**3 / 8, 4.12**3 / 2, 5.69**3 / 8])
    # Mass of 4 NaCl in atomic units (1.66054 g/cm^3 A^3) over the volume of the cell.
    assert first["density"][0] == pytest.approx(4 * 58.443 * 1.66054 / 5.69**3, rel=1e-4)

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(distances, "spacegroup_number", never)
    again = properties([CSCL, SALT])
    assert all(np.array_equal(again[name], first[name][1:]) for name in first)


def test_what_has_no_space_group_is_not_compared(monkeypatch):
    monkeypatch.setattr(distances, "spacegroup_number", lambda *_, **__: None)
    assert np.isnan(properties([SALT])["spacegroup"]).all()
    assert properties([])["spacegroup"].shape == (0,)
