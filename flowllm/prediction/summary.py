"""The ranked table of predictions, for the screen and the report."""

from __future__ import annotations

from collections.abc import Sequence

from flowllm.prediction.prediction import Prediction

NAMES = {
    "rank": "rank",
    "group": "group",
    "prototype": "prototype",
    "atoms": "atoms",
    "cell": "a b c (conventional)",
    "source": "source",
    "probability": "probability",
    "energy": "eV/atom",
    "above_best": "meV/atom above best",
    "above_hull": "eV/atom above hull",
}


def table_rows(predictions: Sequence[Prediction]) -> list[dict[str, str]]:
    """Return the cells of each prediction by the keys of `NAMES`; those without values are absent.

    Args:
        predictions: of one formula, the best first.
    """
    energies = [p.energy_per_atom for p in predictions if p.energy_per_atom is not None]
    lowest = min(energies, default=0.0)
    rows = []
    for prediction in predictions:
        row = {
            "rank": str(prediction.rank),
            "group": f"{prediction.symbol} ({prediction.spacegroup})",
            "prototype": prediction.prototype or "-",
            "atoms": str(len(prediction.structure)),
            "cell": " ".join(f"{length:.2f}" for length in prediction.conventional_lengths),
            "source": prediction.source,
            "probability": f"{100 * prediction.probability:.0f}%",
        }
        if prediction.energy_per_atom is not None:
            row["energy"] = f"{prediction.energy_per_atom:.3f}"
            row["above_best"] = f"{1000 * (prediction.energy_per_atom - lowest):.0f}"
        if prediction.e_above_hull is not None:
            row["above_hull"] = f"{prediction.e_above_hull:.3f}"
        rows.append(row)
    return rows


def heads(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys of the columns that any of the rows has, in the order of `NAMES`.

    Args:
        rows: see `table_rows`.
    """
    return [name for name in NAMES if any(name in row for row in rows)]
