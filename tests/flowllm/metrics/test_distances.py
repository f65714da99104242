from __future__ import annotations

import pytest

from flowllm.metrics.distances import properties
from support import CSCL, SALT


def test_properties_equal_a_hand_calculation():
    found = properties([SALT, CSCL, SALT])
    assert found["num_elements"].tolist() == [2, 2, 2]
    assert found["volume_per_atom"] == pytest.approx([5.69**3 / 8, 4.12**3 / 2, 5.69**3 / 8])
    # Mass of 4 NaCl in atomic units (1.66054 g/cm^3 A^3) over the volume of the cell.
    assert found["density"][0] == pytest.approx(4 * 58.443 * 1.66054 / 5.69**3, rel=1e-4)

    assert properties([])["density"].shape == (0,)
