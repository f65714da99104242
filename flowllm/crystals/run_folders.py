"""Tables of crystals in the folders of finished runs and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowllm.crystals.contents import content_hash
from flowllm.errors import UserError
from flowllm.system.documents import parse_json

# Of sample, refine, mutate and relax, and of predict.
_RUN_TABLES = ("samples.parquet", "predictions.parquet")
_MANIFEST = "manifest.json"
_EVALUATION = "evaluation.json"
_RELAXED_TABLE = "relaxed.parquet"
_INPUT_TABLE = "structures.parquet"


def run_table(path: str | Path) -> Path | None:
    """Return the table of crystals of a finished run or evaluation.

    Args:
        path: a file or folder of any kind.

    Returns:
        `samples.parquet` or `predictions.parquet` of a run; `relaxed.parquet` of an evaluation with
        a potential, `structures.parquet` of one without; None if `path` is neither.

    Raises:
        UserError: if the run is not finished, or its folder holds no crystals.
    """
    path = Path(path)
    for name in _RUN_TABLES:
        if (path / name).is_file():
            return path / name
    if (path / _EVALUATION).is_file():
        with_potential = _identity(path / _EVALUATION).get("potential") is not None
        table = path / (_RELAXED_TABLE if with_potential else _INPUT_TABLE)
        if table.is_file():
            return table
    elif not (path / _MANIFEST).is_file():
        return None
    elif _identity(path / _MANIFEST).get("command") == "pair":
        raise UserError(
            f"{path}: a run of flowllm pair holds pairs and no crystals; give a run of sample, "
            "refine, mutate, predict or relax"
        )
    raise UserError(f"{path}: the run is not finished; repeat its command to go on with it")


def input_hash(path: str | Path) -> str:
    """Return the SHA-256 of an input of crystals, by which a run recognises it.

    Args:
        path: a file, a folder of crystals, a run folder, or `-` for standard input.

    Returns:
        The hash of the file, of all files of the folder, or of the table of the run: its shards
        and logs do not matter.

    Raises:
        UserError: if there is no such file or folder, or the run is not finished.
    """
    return content_hash(run_table(path) or Path(path))


def _identity(file: Path) -> dict[str, Any]:
    """Return the section `run` of a manifest."""
    try:
        return dict(parse_json(file.read_bytes())["run"])
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise UserError(f"{file} is damaged; repeat the run in another folder") from error
