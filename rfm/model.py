"""The refiner as one object: network, chart, statistics, base and integration settings."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dacite
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rfm.base import BaseConfig, Statistics, noisy_base, uniform_base
from rfm.batch import CrystalBatch
from rfm.errors import RefinerError
from rfm.integration import IntegrationConfig
from rfm.network import NetworkConfig, VelocityNetwork
from rfm.objective import LossWeights, PathPoint, conditional_path, velocity_loss

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_TYPE = "rfm-refiner"


@dataclass(kw_only=True)
class RefinerConfig:
    """Everything about a refiner but its weights; written to config.json.

    statistics: of the pairs it is trained on, from `PairDataset.statistics`.
    chart: how cells are written, `logmetric` or `params`.
    max_atoms: atoms of the largest crystal it is trained on; larger ones are refused. None, in a
        config.json from before this was recorded, lets every size pass.
    """

    statistics: Statistics
    chart: str = "logmetric"
    max_atoms: int | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    integration: IntegrationConfig = field(default_factory=IntegrationConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, for JSON."""
        return {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}

    def to_json_string(self) -> str:
        """The text of config.json; experiment trackers ask for it by this name."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RefinerConfig:
        """The inverse of `to_dict`.

        Raises:
            RefinerError: a setting is missing or unknown, or this is another kind of model.
        """
        values = dict(values)
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise RefinerError(f"model_type is {kind!r}, expected {MODEL_TYPE!r}; not a refiner")
        try:
            return dacite.from_dict(cls, values, dacite.Config(strict=True))
        except dacite.DaciteError as error:
            raise RefinerError(f"not a refiner's settings: {error}") from error


class Refiner(nn.Module):
    """A velocity field for crystals that knows its chart, its units and its base.

    `forward` gives the training loss, so that transformers' `Trainer` can train it; `velocity` is
    what an integrator calls.
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        self.cell = config.statistics.standard_chart(config.chart)
        self.network = VelocityNetwork(config.network)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def activation_checkpointing_enable(self, **_: object) -> None:
        """Save memory in training, see `VelocityNetwork`; `Trainer` asks for it by this name."""
        self.network.recompute = True

    def velocity(self, state: CrystalBatch, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities (N, 3) of the coordinates and (B, 6) of the cells at times t (B,)."""
        return self.network(state, self.cell.metric(state.lattice), t)

    def path_velocity(
        self,
        *,
        atomic_numbers: Tensor,
        num_atoms: Tensor,
        base_frac_coords: Tensor,
        target_frac_coords: Tensor,
        base_lattice: Tensor,
        target_lattice: Tensor,
        t: Tensor,
    ) -> tuple[PathPoint, tuple[Tensor, Tensor]]:
        """The point of the conditional path at t, and the velocities predicted there.

        Arguments as for `forward`.
        """
        batch = torch.repeat_interleave(num_atoms)
        point = conditional_path(
            base_frac_coords=base_frac_coords,
            target_frac_coords=target_frac_coords,
            base_lattice=base_lattice,
            target_lattice=target_lattice,
            t=t,
            batch=batch,
        )
        state = CrystalBatch(
            atomic_numbers=atomic_numbers,
            frac_coords=point.frac_coords,
            lattice=point.lattice,
            num_atoms=num_atoms,
            batch=batch,
        )
        return point, self.velocity(state, t)

    def forward(
        self,
        *,
        atomic_numbers: Tensor,
        num_atoms: Tensor,
        base_frac_coords: Tensor,
        target_frac_coords: Tensor,
        base_lattice: Tensor,
        target_lattice: Tensor,
        t: Tensor,
        ids: Sequence[str] | None = None,
        return_loss: bool = True,
    ) -> dict[str, Tensor]:
        """The flow-matching loss of a batch as `rfm.dataset.collate` makes it.

        Args:
            atomic_numbers: (N,).
            num_atoms: (B,).
            base_frac_coords: (N, 3), `target_frac_coords` likewise.
            base_lattice: (B, 6) standardised, `target_lattice` likewise.
            t: (B,) in [0, 1].
            ids: not used; a batch carries them for error messages.
            return_loss: not used; by this name `Trainer` knows that evaluation has a loss.

        Returns:
            Scalars `loss`, and its unweighted parts `coord_loss` and `lattice_loss`.
        """
        point, velocity = self.path_velocity(
            atomic_numbers=atomic_numbers,
            num_atoms=num_atoms,
            base_frac_coords=base_frac_coords,
            target_frac_coords=target_frac_coords,
            base_lattice=base_lattice,
            target_lattice=target_lattice,
            t=t,
        )
        loss = velocity_loss(*velocity, point, self.config.loss)
        return {"loss": loss.total, "coord_loss": loss.coord, "lattice_loss": loss.lattice}

    def draw_base(
        self, crystals: CrystalBatch, rngs: Sequence[np.random.Generator]
    ) -> CrystalBatch:
        """The noisy state at t = 0, one generator per crystal.

        A crystal's base depends only on its own generator, whatever batch it is in. With the base
        `uniform` only the atoms of `crystals` are used.
        """
        if len(rngs) != crystals.num_crystals:
            raise RefinerError(f"{len(rngs)} generators for {crystals.num_crystals} crystals")
        sizes = crystals.num_atoms.tolist()
        if self.config.base.from_crystals:
            coords = np.split(crystals.frac_coords.cpu().numpy(), np.cumsum(sizes)[:-1])
            lattice = crystals.lattice.cpu().numpy()
            drawn = [
                noisy_base(coords[k], lattice[k], self.config.base, rng)
                for k, rng in enumerate(rngs)
            ]
        else:
            drawn = [
                uniform_base(size, self.config.statistics, self.cell, rng)
                for size, rng in zip(sizes, rngs, strict=True)
            ]
        device = crystals.frac_coords.device
        return crystals.at(
            torch.from_numpy(np.concatenate([coords for coords, _ in drawn])).to(device),
            torch.from_numpy(np.stack([vector for _, vector in drawn])).to(device),
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors; bfloat16 halves the file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: value.detach().to("cpu", dtype).contiguous()
            for name, value in self.state_dict().items()
        }
        # safetensors' own save_file makes files that only their owner may read.
        (folder / WEIGHTS_FILE).write_bytes(save(weights, metadata={"format": "pt"}))
        (folder / CONFIG_FILE).write_text(self.config.to_json_string(), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> Refiner:
        """Read a folder that `save_pretrained` wrote; weights become float32, in eval mode.

        Raises:
            RefinerError: a file is missing, damaged, or does not fit the other.
        """
        config_path, weights_path = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
        for path in (config_path, weights_path):
            if not path.is_file():
                raise RefinerError(f"{path} is missing; a refiner folder holds {path.name}")
        try:
            values = json.loads(config_path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RefinerError(f"{config_path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise RefinerError(f"{config_path} does not hold a JSON object")
        try:
            refiner = cls(RefinerConfig.from_dict(values))
        except RefinerError as error:
            raise RefinerError(f"{config_path}: {error}") from error
        try:
            weights = load_file(weights_path)
        except (SafetensorError, OSError) as error:
            raise RefinerError(f"{weights_path} is damaged; fetch it again ({error})") from error
        try:
            refiner.load_state_dict({name: w.float() for name, w in weights.items()})
        except RuntimeError as error:
            raise RefinerError(
                f"{weights_path} does not fit {config_path}: {_first_detail(error)}"
            ) from error
        if refiner.config.max_atoms is None:
            logger.warning(
                "%s has no max_atoms: crystals larger than those the refiner was trained on come "
                "out as nonsense and are not refused; add the number there",
                config_path,
            )
        return refiner.to(device).eval()


def _first_detail(error: RuntimeError) -> str:
    """torch's load error is a heading and one line per parameter; the first of those says it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]
