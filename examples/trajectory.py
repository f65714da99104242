"""Write the path of a refinement as a trajectory that ASE and OVITO play."""

import ase.io
from ase import Atoms

from flowllm import FlowLLM


def main(formula: str = "TiO2", out: str = "trajectory.extxyz") -> None:
    model = FlowLLM.from_pretrained()
    (sample,) = model.sample(1, formula=formula, seed=0, trajectory=True)
    if sample.structure is None:
        print("failed:", sample.failure)
        return
    path = sample.refinement.trajectory
    numbers = sample.structure.atomic_numbers
    frames = [
        Atoms(numbers, scaled_positions=coords, cell=cell, pbc=True)
        for coords, cell in zip(path.frac_coords, path.lattice, strict=True)
    ]
    ase.io.write(out, frames)
    print(f"{len(frames)} states in {out}; volume {frames[0].get_volume():.1f} ->", end=" ")
    print(f"{frames[-1].get_volume():.1f} Angstrom^3")


if __name__ == "__main__":
    main()
