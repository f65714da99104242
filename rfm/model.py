"""The refiner as one object: network, chart and settings, with its training loss and its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rfm.averages import BlockBatch
from rfm.base import noisy_base, uniform_base
from rfm.batch import CrystalBatch
from rfm.config import RefinerConfig
from rfm.errors import RefinerError
from rfm.lattice import StandardChart
from rfm.network import VelocityNetwork
from rfm.objective import PathPoint, conditional_path, velocity_loss

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class Refiner(nn.Module):
    """A velocity field for crystals, with its chart, its units and its base.

    `forward` returns the training loss, so that transformers' `Trainer` can train it; an integrator
    calls `velocity`.

    Attributes:
        config: settings.
        cell: standardised chart of the cells.
        network: velocity network.
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        self.cell = StandardChart.from_statistics(config.chart, config.statistics)
        self.network = VelocityNetwork(config.network)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def activation_checkpointing_enable(self, **_: object) -> None:
        """Save memory in training, see `VelocityNetwork`; `Trainer` calls it by this name."""
        self.network.recompute = True

    def velocity(self, state: CrystalBatch, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return velocities of a batch.

        Args:
            state: B crystals with N atoms.
            t: (B,) times in [0, 1].

        Returns:
            (N, 3) velocity of the coordinates, in periods per unit of t, and (B, 6) velocity of the
            standardised cell vectors.

        Raises:
            RefinerError: if an element is heavier than the network knows.
        """
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
        blocks: Mapping[str, Tensor] | None = None,
    ) -> tuple[PathPoint, tuple[Tensor, Tensor]]:
        """Return the point of the conditional path at t and the velocities predicted there.

        Args:
            atomic_numbers: (N,) int64.
            num_atoms: (B,) int64.
            base_frac_coords: (N, 3) in [0, 1).
            target_frac_coords: (N, 3) in [0, 1).
            base_lattice: (B, 6) standardised.
            target_lattice: (B, 6) standardised.
            t: (B,) in [0, 1].
            blocks: fields of the `rfm.averages.BlockBatch` over which the velocities of the atoms
                are averaged, as in an integration that keeps symmetry; None: no average.

        Returns:
            The point, and velocities (N, 3) and (B, 6).
        """
        batch = torch.repeat_interleave(num_atoms)  # (N,)
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
        coord_velocity, lattice_velocity = self.velocity(state, t)
        if blocks is not None:
            coord_velocity = BlockBatch(**blocks).average(coord_velocity)
        return point, (coord_velocity, lattice_velocity)

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
        blocks: Mapping[str, Tensor] | None = None,
        ids: Sequence[str] | None = None,
        return_loss: bool = True,
    ) -> dict[str, Tensor]:
        """Return the flow-matching loss of a batch made by `rfm.dataset.collate`.

        Args:
            atomic_numbers: (N,) int64.
            num_atoms: (B,) int64.
            base_frac_coords: (N, 3) in [0, 1).
            target_frac_coords: (N, 3) in [0, 1).
            base_lattice: (B, 6) standardised.
            target_lattice: (B, 6) standardised.
            t: (B,) in [0, 1].
            blocks: see `path_velocity`.
            ids: not used; a batch carries them for error messages.
            return_loss: not used; `Trainer` recognises by this name that evaluation has a loss.

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
            blocks=blocks,
        )
        loss = velocity_loss(*velocity, point, self.config.loss)
        return {"loss": loss.total, "coord_loss": loss.coord, "lattice_loss": loss.lattice}

    def draw_base(
        self, crystals: CrystalBatch, rngs: Sequence[np.random.Generator]
    ) -> CrystalBatch:
        """Return noisy states at t = 0, with the symmetry of the crystals if they keep any.

        A crystal's base depends on its own generator alone, not on its batch.

        Args:
            crystals: B crystals; the base `uniform` uses only their atoms.
            rngs: a generator for each crystal.

        Raises:
            RefinerError: if there is not one generator per crystal.
        """
        if len(rngs) != crystals.num_crystals:
            raise RefinerError(f"{len(rngs)} generators for {crystals.num_crystals} crystals")
        sizes = crystals.num_atoms.tolist()
        if self.config.base.from_crystals:
            coords = np.split(crystals.frac_coords.cpu().numpy(), np.cumsum(sizes)[:-1])
            lattice = crystals.lattice.cpu().numpy()
            symmetry = crystals.symmetry
            groups = [None] * len(rngs) if symmetry is None else symmetry.groups
            blocks = [group if group is None else group.blocks for group in groups]
            drawn = [
                noisy_base(coords[k], lattice[k], self.config.base, rng, blocks[k])
                for k, rng in enumerate(rngs)
            ]
        else:
            drawn = [
                uniform_base(size, self.config.statistics, self.cell, rng)
                for size, rng in zip(sizes, rngs, strict=True)
            ]
        device = crystals.frac_coords.device
        cells = torch.from_numpy(np.stack([vector for _, vector in drawn])).to(device)
        return crystals.at(
            torch.from_numpy(np.concatenate([coords for coords, _ in drawn])).to(device),
            cells if crystals.symmetry is None else crystals.symmetry.average_cells(cells),
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors.

        Args:
            folder: folder to write, made if it is missing.
            dtype: type of the stored weights; bfloat16 halves the file.
        """
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
        """Return the refiner that `save_pretrained` wrote, in float32 and eval mode.

        Args:
            folder: folder with config.json and model.safetensors.
            device: device of the weights.

        Raises:
            RefinerError: if a file is missing or damaged, or the two do not fit each other.
        """
        config_path, weights_path = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
        for path in (config_path, weights_path):
            if not path.is_file():
                raise RefinerError(f"{path} is missing; a refiner folder holds {path.name}")
        try:
            values = json.loads(config_path.read_bytes())
        except (ValueError, RecursionError) as error:
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
    """Return the first line about a parameter of torch's load error, which follows a heading."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]
