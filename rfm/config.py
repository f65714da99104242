"""Settings of a refiner: plain dataclasses that check their values and need no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

import dacite

from rfm.errors import RefinerError

MODEL_TYPE = "rfm-refiner"
BASE_KINDS = ("llm", "uniform", "file")
CHARTS = ("logmetric", "params")
INTEGRATION_METHODS = ("euler", "midpoint", "heun")
SYMMETRIES = ("keep", "free")


@dataclass(kw_only=True)
class NetworkConfig:
    """Size of the velocity network.

    The defaults give about one million parameters; FlowMM (arXiv 2406.04713) has width 512, 6
    layers and 128 frequencies.

    Attributes:
        width: length of the state of an atom.
        layers: number of message passing layers.
        num_frequencies: number K of sines and cosines per fractional coordinate.
        max_atomic_number: largest atomic number that the network knows.

    Raises:
        RefinerError: if a number is below 1.
    """

    width: int = 128
    layers: int = 5
    num_frequencies: int = 10
    max_atomic_number: int = 100

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise RefinerError(f"network: {name} is {value}; it must be at least 1")


@dataclass(kw_only=True)
class BaseConfig:
    """Base distribution of the flow, see `rfm.base`.

    Attributes:
        kind: `llm`, `uniform` or `file`.
        position_sigma: width of the noise on fractional coordinates, in periods; `uniform` ignores
            it.
        cell_sigma: width of the noise on the standardised cell vector; `uniform` ignores it.
        symmetry: `keep` trains on symmetric paths and leaves out pairs whose target does not have
            the space group of its base (`rfm.dataset`); `free` trains on all pairs. Both can be
            used with and without keeping symmetry (`rfm.refine`).

    Raises:
        RefinerError: if the kind or `symmetry` is unknown, a width is negative or not finite, or
            the symmetry of a base without crystals is to be kept.
    """

    kind: str = "llm"
    position_sigma: float = 0.0
    cell_sigma: float = 0.0
    symmetry: str = "free"

    def __post_init__(self) -> None:
        if self.kind == "pairs":  # the name of `llm` in folders that were saved before
            self.kind = "llm"
        if self.kind not in BASE_KINDS:
            raise RefinerError(f"unknown base {self.kind!r}; choose one of {', '.join(BASE_KINDS)}")
        for name in ("position_sigma", "cell_sigma"):
            _check_not_negative(name, getattr(self, name))
        if self.symmetry not in SYMMETRIES:
            raise RefinerError(
                f"unknown base.symmetry {self.symmetry!r}; choose one of {', '.join(SYMMETRIES)}"
            )
        if self.symmetry == "keep" and not self.from_crystals:
            raise RefinerError(
                "the base uniform has no symmetry to keep; set base.symmetry to free"
            )

    @property
    def from_crystals(self) -> bool:
        """True if the flow starts from given crystals, False if from noise alone."""
        return self.kind != "uniform"


@dataclass(kw_only=True)
class Statistics:
    """Means and standard deviations of the cells of the training pairs.

    Attributes:
        mean: six means of the chart vectors of all base and target cells.
        std: six standard deviations of the same vectors, above 0.
        log_length_mean: three means of the logarithms of a, b, c (Angstrom) of the target cells.
        log_length_std: three standard deviations of the same logarithms.

    Raises:
        RefinerError: if there are too few or too many numbers, one is not finite, or a `std` is not
            positive.
    """

    mean: list[float]
    std: list[float]
    log_length_mean: list[float]
    log_length_std: list[float]

    def __post_init__(self) -> None:
        for name, count in (("mean", 6), ("std", 6), ("log_length_mean", 3), ("log_length_std", 3)):
            values = getattr(self, name)
            if len(values) != count or not all(map(math.isfinite, values)):
                raise RefinerError(f"statistics: {name} must be {count} finite numbers: {values}")
        if min(self.std) <= 0:
            raise RefinerError(f"statistics: std must be positive: {self.std}")


@dataclass(kw_only=True)
class LossWeights:
    """Weights of the two parts of the loss; the defaults are FlowMM's for MP-20.

    Attributes:
        coord: weight of the coordinate velocities.
        lattice: weight of the cell velocities.

    Raises:
        RefinerError: if a weight is negative or not finite.
    """

    coord: float = 400.0
    lattice: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check_not_negative(f"loss: {name}", value)


@dataclass(kw_only=True)
class IntegrationConfig:
    """Numerical integration of the flow, see `rfm.integration`.

    Attributes:
        steps: number of equal time steps from t = 0 to 1.
        method: `euler`, or `midpoint` or `heun`, which evaluate the network twice per step.
        position_slope: slope s of the anti-annealing factor 1 + s t on the coordinate velocity.
        cell_slope: slope s of the same factor on the cell velocity.

    Raises:
        RefinerError: if the method is unknown, there is less than one step, or a slope is negative
            or not finite.
    """

    steps: int = 50
    method: str = "euler"
    position_slope: float = 5.0
    cell_slope: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in INTEGRATION_METHODS:
            known = ", ".join(INTEGRATION_METHODS)
            raise RefinerError(f"unknown integration method {self.method!r}; choose one of {known}")
        if self.steps < 1:
            raise RefinerError(f"integration.steps is {self.steps}; at least one is needed")
        for name in ("position_slope", "cell_slope"):
            _check_not_negative(f"integration.{name}", getattr(self, name))

    def but(
        self,
        *,
        steps: int | None = None,
        method: str | None = None,
        position_slope: float | None = None,
        cell_slope: float | None = None,
    ) -> IntegrationConfig:
        """Return a copy with some values replaced.

        Args:
            steps: new number of steps; None keeps the present one.
            method: new method; None keeps the present one.
            position_slope: new slope of the coordinates; None keeps the present one.
            cell_slope: new slope of the cell; None keeps the present one.

        Raises:
            RefinerError: if a new value is impossible, see the class.
        """
        return IntegrationConfig(
            steps=self.steps if steps is None else steps,
            method=self.method if method is None else method,
            position_slope=self.position_slope if position_slope is None else position_slope,
            cell_slope=self.cell_slope if cell_slope is None else cell_slope,
        )


@dataclass(kw_only=True)
class RefinerConfig:
    """Everything about a refiner but its weights; written to config.json.

    Attributes:
        statistics: of the training pairs, from `PairDataset.statistics`.
        chart: representation of the cell, `logmetric` or `params`, see `rfm.lattice`.
        max_atoms: number of atoms of the largest training crystal; larger crystals are refused.
            None, in a config.json from before this was recorded, accepts every size.
        network: size of the network.
        base: base distribution.
        loss: weights of the training loss.
        integration: integration settings used unless the caller gives others.

    Raises:
        RefinerError: if the chart is unknown.
    """

    statistics: Statistics
    chart: str = "logmetric"
    max_atoms: int | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    integration: IntegrationConfig = field(default_factory=IntegrationConfig)

    def __post_init__(self) -> None:
        check_chart(self.chart)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts, for JSON."""
        return {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}

    def to_json_string(self) -> str:
        """Return the text of config.json; experiment trackers call this method by its name."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RefinerConfig:
        """Return the config that `to_dict` turned into these values.

        Args:
            values: contents of config.json.

        Raises:
            RefinerError: if a setting is missing, unknown or impossible, or the values describe
                another kind of model.
        """
        values = dict(values)
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise RefinerError(f"model_type is {kind!r}, expected {MODEL_TYPE!r}; not a refiner")
        try:
            return dacite.from_dict(cls, values, dacite.Config(strict=True))
        except dacite.DaciteError as error:
            raise RefinerError(f"not a refiner's settings: {error}") from error


def check_chart(name: str) -> None:
    """Check the name of a lattice chart.

    Args:
        name: name of a chart.

    Raises:
        RefinerError: if no chart has this name.
    """
    if name not in CHARTS:
        raise RefinerError(f"unknown lattice chart {name!r}; choose one of {', '.join(CHARTS)}")


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise RefinerError(f"{name} is {value}; it must be 0 or positive")
