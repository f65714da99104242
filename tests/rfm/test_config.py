"""Settings: what they refuse, their JSON, and that they need no torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from rfm.config import (
    BaseConfig,
    IntegrationConfig,
    LossWeights,
    NetworkConfig,
    RefinerConfig,
    Statistics,
)
from rfm.errors import RefinerError
from support import BUNDLED_REFINER

WITHOUT_TORCH = """
import sys
import rfm
for name in ("BaseConfig", "Failure", "IntegrationConfig", "LossWeights", "NetworkConfig",
             "RefinerConfig", "RefinerError", "Statistics"):
    getattr(rfm, name)
rfm.NetworkConfig(), rfm.IntegrationConfig(steps=3)
assert not {"torch", "numpy", "pymatgen"} & sys.modules.keys()
"""


def test_settings_and_errors_need_no_torch() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)


def test_every_public_name_can_be_imported() -> None:
    import rfm

    for name in rfm.__all__:
        assert getattr(rfm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'refiner'"):
        rfm.refiner  # noqa: B018


def test_the_settings_of_the_bundled_refiner_are_read_unchanged() -> None:
    values = json.loads((BUNDLED_REFINER / "config.json").read_text())
    assert RefinerConfig.from_dict(values).to_dict() == values


def test_an_unknown_chart_is_refused(statistics: Statistics) -> None:
    with pytest.raises(RefinerError, match="unknown lattice chart 'polar'.*logmetric, params"):
        RefinerConfig(statistics=statistics, chart="polar")


def test_the_symmetry_of_the_base_is_checked_and_free_in_older_files() -> None:
    with pytest.raises(
        RefinerError, match="unknown base.symmetry 'lose'; choose one of keep, free"
    ):
        BaseConfig(symmetry="lose")
    with pytest.raises(RefinerError, match="the base uniform has no symmetry to keep"):
        BaseConfig(kind="uniform", symmetry="keep")
    values = json.loads((BUNDLED_REFINER / "config.json").read_text())
    del values["base"]["symmetry"]
    assert RefinerConfig.from_dict(values).base.symmetry == "free"


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_impossible_loss_weights_are_refused(weight: float) -> None:
    with pytest.raises(RefinerError, match="loss: lattice is"):
        LossWeights(lattice=weight)


def test_a_config_is_the_same_after_json(statistics: Statistics) -> None:
    config = RefinerConfig(
        statistics=statistics,
        chart="params",
        network=NetworkConfig(width=8),
        base=BaseConfig(kind="uniform"),
        loss=LossWeights(coord=3.0),
    )
    assert RefinerConfig.from_dict(json.loads(config.to_json_string())) == config


@pytest.mark.parametrize(
    "changes", [{"std": [0.0] * 6}, {"mean": [0.0] * 5}, {"log_length_std": [float("nan")] * 3}]
)
def test_impossible_statistics_are_refused(changes: dict, statistics: Statistics) -> None:
    with pytest.raises(RefinerError, match="statistics"):
        Statistics(**{**vars(statistics), **changes})


@pytest.mark.parametrize("kind", ["Uniform", ""])
def test_an_unknown_base_is_refused(kind: str) -> None:
    with pytest.raises(RefinerError, match="unknown base"):
        BaseConfig(kind=kind)


def test_the_former_name_of_the_llm_base_is_still_read() -> None:
    assert BaseConfig(kind="pairs") == BaseConfig(kind="llm")


def test_a_negative_noise_width_is_refused() -> None:
    with pytest.raises(RefinerError, match="cell_sigma is -1"):
        BaseConfig(cell_sigma=-1)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(RefinerError, match="steps is 0"):
        IntegrationConfig(steps=0)
    with pytest.raises(RefinerError, match="unknown .*method 'leapfrog'.*euler, midpoint, heun"):
        IntegrationConfig(method="leapfrog")
    with pytest.raises(RefinerError, match="cell_slope is -1"):
        IntegrationConfig(cell_slope=-1.0)
    with pytest.raises(RefinerError, match="position_slope is nan"):
        IntegrationConfig().but(position_slope=math.nan)


def test_replaced_settings_leave_the_rest_as_it_is() -> None:
    own = IntegrationConfig(steps=7, method="heun", position_slope=1.0, cell_slope=2.0)
    assert own.but() == own
    assert own.but(steps=3, position_slope=0.0) == IntegrationConfig(
        steps=3, method="heun", position_slope=0.0, cell_slope=2.0
    )
    assert own.steps == 7
