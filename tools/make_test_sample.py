"""Write `tests/data/mp20_sample.parquet`: 72 crystals of MP-20's validation split for the tests.

    python tools/make_test_sample.py ../shared/data/mp20/val.parquet tests/data/mp20_sample.parquet

The sample has crystals of all seven crystal systems and of 1 to 20 atoms. MP-20 is Materials
Project data (CC BY 4.0) in the split of Xie et al. 2021 (arXiv 2110.06197).
"""

from __future__ import annotations

import sys

import pandas as pd

SYSTEMS = {2: 8, 15: 10, 74: 12, 142: 12, 167: 10, 194: 10, 230: 10}  # last group -> crystals


def main(source: str, target: str) -> None:
    """Draw the sample by crystal system with a fixed seed."""
    table = pd.read_parquet(source)
    table = table[table["geometry"] == "exact"].drop(columns="geometry")
    first, parts = 1, []
    for last, count in SYSTEMS.items():
        of_system = table[table["spacegroup.number"].between(first, last)]
        parts.append(of_system.sample(count, random_state=last))
        first = last + 1
    sample = pd.concat(parts).sort_values("material_id").reset_index(drop=True)
    sample.to_parquet(target, compression="zstd")


if __name__ == "__main__":
    main(*sys.argv[1:])
