"""Round trip of the `wyckoff` text: which crystals come back, and how long the texts are.

    OMP_NUM_THREADS=1 python benchmarks/wyckoff_round_trip.py ../shared/data/mp20/train.parquet \\
        ../shared/data/mp20/val.parquet --llama-tokenizer llama_tokenizer.json

Every crystal is encoded, decoded to its primitive Niggli cell and compared by pymatgen's
StructureMatcher with its defaults. Those that do not come back are listed with the reason. Also
printed: the root mean square displacement (in units of (V/N)^(1/3), as StructureMatcher has it) of
those that do, the strain of the cell by rounding (largest relative change of a length in any
direction), the share whose decoded crystal has exactly the group of its text (spglib at 0.01
Angstrom), fields and tokens per crystal, the longest axis, and the time of encoding. The crystals
come in random order and the figures so far are printed after every 1,000, so a run that is stopped
has told those of a random sample.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice
from tokenizers import Tokenizer

from flowllm.crystals.io import read
from llm_prior.errors import PriorError
from llm_prior.wyckoff import (
    WyckoffCrystal,
    WyckoffFormat,
    actual_group,
    decode,
    describe,
    describe_anew,
    to_text,
)

_REPORTED = 1000  # crystals


def strain(exact: WyckoffCrystal, rounded: WyckoffCrystal) -> float:
    """Return the largest relative change of a length in any direction."""
    before = Lattice.from_parameters(*exact.parameters).matrix
    change = np.linalg.inv(before) @ Lattice.from_parameters(*rounded.parameters).matrix
    return float(np.abs(np.linalg.svd(change, compute_uv=False) - 1).max())


@dataclass
class Figures:
    """What has been found so far."""

    fmt: WyckoffFormat
    total: int = 0
    exact: int = 0
    longest: float = 0.0
    seconds: float = 0.0
    lost: dict[str, list[str]] = field(default_factory=dict)
    groups: Counter[str] = field(default_factory=Counter)
    fields: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    displacements: list[float] = field(default_factory=list)
    strains: list[float] = field(default_factory=list)

    def lose(self, reason: str, crystal: str) -> None:
        """Note a crystal that does not come back."""
        self.lost.setdefault(reason, []).append(crystal)

    def print(self) -> None:
        """Print the figures."""
        total, back = self.total, len(self.displacements)
        print(f"{self.fmt}")
        print(f"come back: {back} of {total} ({back / total:.2%})")
        for reason, ids in self.lost.items():
            print(f"  {reason}: {len(ids)}: {' '.join(ids[:20])}")
        middle, high = np.quantile(self.displacements, [0.5, 0.99])
        mean = np.mean(self.displacements)
        print(f"RMS displacement: mean {mean:.4f}, median {middle:.4f}, 99% {high:.4f}")
        print(f"strain of the cell: mean {np.mean(self.strains):.4f}, most {max(self.strains):.4f}")
        print(f"longest axis of a conventional cell: {self.longest:.1f} Angstrom")
        print(f"exact group at 0.01 Angstrom: {self.exact} of {total} ({self.exact / total:.2%})")
        print(f"  most frequent others: {self.groups.most_common(12)}")
        counts = self.fields
        print(
            f"fields: mean {np.mean(counts):.2f}, median {np.median(counts):g}, most {max(counts)}"
        )
        if self.tokens:
            print(
                f"LLaMA tokens: mean {np.mean(self.tokens):.1f}, median {np.median(self.tokens):g}"
            )
        print(f"encoding: {1e3 * self.seconds / total:.1f} ms of CPU per crystal", flush=True)


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--limit", type=int, help="Look at so many crystals only.")
@click.option("--coord-bins", type=int, default=100, show_default=True)
@click.option("--length-decimals", type=int, default=1, show_default=True)
@click.option("--angle-decimals", type=int, default=0, show_default=True)
@click.option("--symprec", type=float, default=0.1, show_default=True, help="Angstrom.")
@click.option("--augment", is_flag=True, help="Draw descriptions over the normalizer.")
@click.option("--llama-tokenizer", type=click.Path(exists=True), help="Also count its tokens.")
def main(
    files: tuple[Path, ...],
    limit: int | None,
    coord_bins: int,
    length_decimals: int,
    angle_decimals: int,
    symprec: float,
    augment: bool,
    llama_tokenizer: str | None,
) -> None:
    """Run the round trip and print its figures."""
    fmt = WyckoffFormat(
        coord_bins=coord_bins,
        length_decimals=length_decimals,
        angle_decimals=angle_decimals,
        symprec=symprec,
        max_atoms=1000,
    )
    rng = np.random.default_rng(0) if augment else None
    tokenizer = Tokenizer.from_file(llama_tokenizer) if llama_tokenizer else None
    matcher, unreduced = StructureMatcher(), StructureMatcher(primitive_cell=False)
    figures = Figures(fmt)
    crystals = [crystal for file in files for crystal in read(file, skip_invalid=True)]
    random.Random(0).shuffle(crystals)
    for crystal in crystals[:limit]:
        if figures.total and figures.total % _REPORTED == 0:
            figures.print()
        figures.total += 1
        start = time.process_time()
        try:
            exact_crystal = describe_anew(describe(crystal.structure, symprec), fmt, rng)
            text = to_text(exact_crystal, fmt)
        except PriorError as error:
            figures.lose(f"not encoded: {error}", crystal.id)
            continue
        figures.seconds += time.process_time() - start
        figures.fields.append(len(text.split()))
        if tokenizer is not None:
            figures.tokens.append(len(tokenizer.encode(text, add_special_tokens=False)))
        try:
            decoded = decode(text, fmt)
            structure = decoded.primitive()
        except PriorError as error:
            figures.lose(f"not decoded: {getattr(error, 'reason', 'no cell')}", crystal.id)
            continue
        figures.strains.append(strain(exact_crystal, decoded))
        figures.longest = max(figures.longest, *decoded.parameters[:3])
        found = actual_group(structure)
        figures.exact += found == decoded.spacegroup
        if found != decoded.spacegroup:
            figures.groups[f"{decoded.spacegroup} -> {found}"] += 1
        rms = matcher.get_rms_dist(structure, crystal.structure)
        if rms is None:
            reason = "the rounded coordinates are too far off"
            if unreduced.fit(structure, crystal.structure):
                reason = "the matcher reduces one of the two to a smaller cell; without, it does"
            elif len(structure) != len(crystal.structure):
                reason = "another number of atoms"
            figures.lose(f"not matched: {reason}", crystal.id)
        else:
            figures.displacements.append(rms[0])
    figures.print()


if __name__ == "__main__":
    main()
