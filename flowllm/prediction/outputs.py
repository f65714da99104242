"""Outputs of a prediction run: records, table, crystals and report."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.runs.cif_form import CifForm
from flowllm.runs.sharded import RunFolder

if TYPE_CHECKING:
    from flowllm.evaluation.energies import EnergyModel
    from flowllm.prediction.prediction import FormulaOutcome

logger = logging.getLogger(__name__)

TABLE = "predictions"  # NAME.parquet and NAME.extxyz
REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class PredictionRun:
    """A finished run.

    Attributes:
        folder: the run folder.
        outcomes: what was found for each formula, in order.
        has_potential: whether there was a potential.
        has_hull: whether there was a hull.
    """

    folder: Path
    outcomes: list[FormulaOutcome]
    has_potential: bool
    has_hull: bool


def record_of(outcome: FormulaOutcome) -> dict[str, Any]:
    """Return the record of a formula for the shards of a run, plain JSON.

    Args:
        outcome: what was found.
    """
    return {
        "formula": outcome.formula,
        "problem": outcome.problem,
        "warning": outcome.warning,
        "num_candidates": outcome.num_candidates,
        "failures": dict(outcome.failures),
        "predictions": [p.to_record().to_json() for p in outcome.predictions],
    }


def outcome_of(record: Mapping[str, Any]) -> FormulaOutcome:
    """Return the outcome that `record_of` has made a record of.

    Args:
        record: plain JSON.
    """
    from flowllm.prediction.prediction import FormulaOutcome, Prediction
    from flowllm.runs.records import CrystalRecord

    return FormulaOutcome(
        formula=record["formula"],
        predictions=[
            Prediction.from_record(CrystalRecord.from_json(one)) for one in record["predictions"]
        ],
        num_candidates=record["num_candidates"],
        failures=Counter(record["failures"]),
        problem=record["problem"],
        warning=record["warning"],
    )


def publish_predictions(
    folder: RunFolder, energy: EnergyModel | None, cif: CifForm
) -> PredictionRun:
    """Write the files of a complete run; energies above the hull are computed here.

    Args:
        folder: the run.
        energy: the potential with the hull; None for none.
        cif: form of the files in `cif/`; see `flowllm.runs.outputs.publish_crystals`.

    Returns:
        What was found for each formula.

    Raises:
        UserError: if shards are missing or damaged.
    """
    import pyarrow as pa

    from flowllm.prediction.prediction import with_hull
    from flowllm.runs.outputs import publish_records
    from flowllm.runs.records import CrystalRecord

    outcomes = list(folder.parsed(outcome_of))
    if energy is not None and energy.hull is not None:
        outcomes = [
            dataclasses.replace(outcome, predictions=with_hull(outcome.predictions, energy))
            for outcome in outcomes
        ]
    records = []
    for outcome in outcomes:
        records += [prediction.to_record() for prediction in outcome.predictions]
        if outcome.problem is not None:
            records.append(
                CrystalRecord(
                    id=outcome.formula,
                    structure=None,
                    failure=outcome.problem,
                    properties={"formula": outcome.formula},
                )
            )
    text, number = pa.string(), pa.float64()
    columns = {
        "rank": pa.int64(),
        "symbol": text,
        "gene": text,
        "prototype": text,
        "source": text,
        "probability": number,
        "score": number,
        "log_probability": number,
        "energy_per_atom": number,
        "formation_energy_per_atom": number,
        "e_above_hull": number,
        "is_free": pa.bool_(),
    }
    in_files = ("energy_per_atom", "formation_energy_per_atom", "e_above_hull", "probability")
    publish_records(
        folder,
        records,
        columns,
        cif=cif,
        table_only=[name for name in columns if name not in in_files],
        name=TABLE,
    )
    run = PredictionRun(
        folder=folder.path,
        outcomes=outcomes,
        has_potential=energy is not None,
        has_hull=energy is not None and energy.hull is not None,
    )
    try:
        from flowllm.prediction.report import report_page
    except ModuleNotFoundError as error:
        if error.name not in ("plotly", "jinja2", "markupsafe"):
            raise
        logger.warning(
            "no report.html: it needs %s; pip install 'flowllm-crystal[eval]'", error.name
        )
    else:
        folder.publish(REPORT, lambda path: path.write_text(report_page(run), encoding="utf-8"))
    return run
