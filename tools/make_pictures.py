"""Draw the pictures of README and documentation into docs/pictures.

    python tools/make_pictures.py              # all, with the bundled pair; about a minute
    python tools/make_pictures.py --explained  # only those that need no model

The crystals are chosen by rule from 64 draws at temperature 1, so another pair gives other pictures
without a change of this script: `crystals.png` shows the first of each of six space groups;
`refinement.png` and `.gif` show the crystal of 8 to 14 atoms that moved farthest.
"""

from __future__ import annotations

import argparse
import re
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.visualize.plot import plot_atoms
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from flowllm import FlowLLM, Sample

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
DRAWS, SEED = 64, 3
SHOWN = 6  # crystals in the row, and states in the strip
FRAMES = 26  # of the GIF
VIEW = "-80x,18y,8z"


def show(axes: Axes, cell: np.ndarray, numbers: np.ndarray, frac_coords: np.ndarray) -> None:
    """Draw a cell with the images of the atoms on its border.

    Args:
        axes: to draw on.
        cell: (3, 3) rows a, b, c in Angstrom.
        numbers: (n,) atomic numbers.
        frac_coords: (n, 3).
    """
    shifted = [
        (number, place + shift)
        for number, place in zip(numbers, frac_coords % 1, strict=True)
        for shift in np.array(list(product((-1, 0, 1), repeat=3)))
        if ((place + shift > -0.03) & (place + shift < 1.03)).all()
    ]
    kinds, places = zip(*shifted, strict=True)
    atoms = Atoms(kinds, scaled_positions=np.array(places), cell=cell, pbc=True)
    atoms.set_positions(np.array(places) @ cell)  # scaled positions are wrapped by ASE
    plot_atoms(atoms, axes, rotation=VIEW, radii=0.6 * covalent_radii[list(kinds)])
    axes.set_axis_off()


def formula(structure: Structure) -> str:
    return str(structure.composition.reduced_composition.to_latex_string()).replace("$_{1}$", "")


def conventional(structure: Structure) -> Structure:
    return SpacegroupAnalyzer(structure, symprec=0.1).get_conventional_standard_structure()


def draw_crystals(samples: list[Sample]) -> None:
    """Write `crystals.png`: the first crystal of each of six space groups."""
    chosen: dict[str, Structure] = {}
    for sample in samples:
        if sample.structure is None or len(sample.structure.elements) < 3:
            continue
        cell = conventional(sample.structure)
        if 6 <= len(cell) <= 30:  # can be drawn
            chosen.setdefault(cell.get_space_group_info(0.1)[0], cell)
    figure, places = plt.subplots(1, SHOWN, figsize=(2.0 * SHOWN, 2.5))
    for axes, (symbol, cell) in zip(places, chosen.items(), strict=False):
        show(axes, cell.lattice.matrix, np.array(cell.atomic_numbers), cell.frac_coords)
        group = re.sub(r"_(\d)", r"$_\1$", symbol)
        axes.set_title(f"{formula(cell)}\n{group}", fontsize=11)
    save(figure, "crystals.png")


def farthest(samples: list[Sample]) -> Sample:
    """Return the sample of 8 to 14 atoms whose atoms moved most in refining."""

    def moved(sample: Sample) -> float:
        if sample.structure is None or not 8 <= len(sample.structure) <= 14:
            return 0.0
        path = sample.refinement.trajectory
        way = path.frac_coords[-1] - path.frac_coords[0]
        return float(np.linalg.norm((way - np.round(way)) @ path.lattice[-1], axis=1).mean())

    return max(samples, key=moved)


def draw_refinement(sample: Sample) -> None:
    """Write the states of one refinement as `refinement.png` and `refinement.gif`."""
    path = sample.refinement.trajectory
    numbers = np.array(sample.structure.atomic_numbers)
    name = formula(sample.structure)

    figure, places = plt.subplots(1, SHOWN, figsize=(2.0 * SHOWN, 2.5))
    for axes, time in zip(places, (0, 0.1, 0.2, 0.3, 0.5, 1), strict=True):
        state = int(np.argmin(np.abs(np.asarray(path.t) - time)))
        show(axes, path.lattice[state], numbers, path.frac_coords[state])
        axes.set_title(f"{name}\n$t$ = {float(path.t[state]):.2f}", fontsize=11)
    save(figure, "refinement.png")

    frames = []
    for state in np.linspace(0, len(path.t) - 1, FRAMES).round().astype(int):
        figure, axes = plt.subplots(figsize=(3, 3), dpi=90)
        show(axes, path.lattice[state], numbers, path.frac_coords[state])
        axes.set_title(f"{name}   $t$ = {float(path.t[state]):.2f}", fontsize=11)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB"))
        plt.close(figure)
    few = [frame.quantize(48) for frame in frames]
    durations = [120] * len(few)
    durations[0] = durations[-1] = 1200
    few[0].save(
        PICTURES / "refinement.gif",
        save_all=True,
        append_images=few[1:],
        duration=durations,
        loop=0,
    )


def draw_torus() -> None:
    """Write `torus.png`: the shortest way between two points crosses the border of the cell."""
    figure, axes = plt.subplots(figsize=(4.2, 4.2))
    x, y = np.array([0.82, 0.25]), np.array([0.15, 0.6])
    way = y - x - np.round(y - x)
    axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color="0.5")
    axes.annotate(
        "", y, x, arrowprops={"arrowstyle": "-|>", "color": "0.75", "lw": 1.5, "ls": "--"}
    )
    for start in (x, x - [1, 0]):
        axes.annotate(
            "", start + way, start, arrowprops={"arrowstyle": "-|>", "color": "C0", "lw": 2}
        )
    axes.plot(*x, "o", color="C1", ms=10)
    axes.plot(*y, "o", color="C2", ms=10)
    for image, colour in ((y + [1, 0], "C2"), (x - [1, 0], "C1")):
        axes.plot(*image, "o", color=colour, ms=10, fillstyle="none")
    axes.text(*(x + [0.03, -0.07]), "$x$", fontsize=14)
    axes.text(*(y + [0.0, 0.05]), "$y$", fontsize=14)
    axes.text(1.0, 0.52, r"$\log_x(y)$", fontsize=13, color="C0", ha="right")
    axes.text(0.48, 0.36, r"$y - x$", fontsize=13, color="0.5")
    axes.set(xlim=(-0.25, 1.25), ylim=(-0.05, 1.05), aspect="equal")
    axes.set_axis_off()
    save(figure, "torus.png")


def draw_symmetry() -> None:
    """Write `symmetry.png`: velocities of the orbits of p4mm before and after the projection."""
    quarter = np.array([[0, -1], [1, 0]])
    mirror = np.array([[1, 0], [0, -1]])
    turns = [np.linalg.matrix_power(quarter, k) for k in range(4)]
    group = np.array([*turns, *(turn @ mirror for turn in turns)])
    orbit = np.unique(np.round(group @ np.array([0.3, 0.0]), 9), axis=0)  # on a mirror line
    places = np.concatenate([orbit, np.zeros((1, 2))])  # and the centre
    velocity = 0.4 * places + np.random.default_rng(4).normal(0, 0.09, places.shape)
    average = np.zeros_like(velocity)
    for operation in group:
        moved = places @ operation.T
        onto = np.linalg.norm(moved[:, None] - places[None], axis=-1).argmin(axis=1)
        average[onto] += velocity @ operation.T / len(group)

    figure, both = plt.subplots(1, 2, figsize=(7.4, 3.7))
    titles = ("velocity of the network", "average over the group")
    for axes, arrows, title in zip(both, (velocity, average), titles, strict=True):
        axes.plot([-0.5, 0.5, 0.5, -0.5, -0.5], [-0.5, -0.5, 0.5, 0.5, -0.5], color="0.5")
        for line in ([-0.5, 0.5], [0, 0]), ([0, 0], [-0.5, 0.5]):
            axes.plot(*line, color="0.8", ls="--", zorder=0)
        axes.scatter(*places.T, s=190, c=["C0"] * len(orbit) + ["C1"], zorder=2)
        axes.quiver(
            *places.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.012, zorder=3
        )
        axes.set(aspect="equal", title=title)
        axes.set_axis_off()
    save(figure, "symmetry.png")


def save(figure: Figure, name: str) -> None:
    """Write a figure with at most 64 colours, which keeps files small."""
    path = PICTURES / name
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--explained", action="store_true", help="only those that need no model")
    arguments = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    draw_torus()
    draw_symmetry()
    if not arguments.explained:
        model = FlowLLM.from_pretrained()
        samples = model.sample(DRAWS, temperature=1.0, seed=SEED, trajectory=True)
        draw_crystals(samples)
        draw_refinement(farthest(samples))


if __name__ == "__main__":
    main()
