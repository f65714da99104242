"""The number type of a refiner's matrix products, which the results of a run depend on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowllm.errors import UserError
from flowllm.runs.identity import read_identity
from flowllm.runs.sharded import MANIFEST

if TYPE_CHECKING:
    from rfm import Refiner


def refiner_precision(refiner: Refiner | None) -> str | None:
    """Return the type in which a refiner multiplies matrices here, for manifests.

    Args:
        refiner: on its device, or None.

    Returns:
        `bfloat16` or `float32`, see `rfm.matrix_precision`; None without a refiner.
    """
    if refiner is None:
        return None
    from rfm import matrix_precision  # imports torch

    return matrix_precision(refiner.device)


def check_precision(here: str | None, there: str | None, where: str | Path) -> None:
    """Refuse to compute a part of a run in another type than the rest of it.

    Args:
        here: see `refiner_precision`.
        there: of the run; None if it is not known, or there is no refiner.
        where: names the run in the message.

    Raises:
        UserError: if the types differ.
    """
    if None not in (here, there) and here != there:
        raise UserError(
            f"{where} is refined in {there}, and this machine refines in {here}; compute it on "
            "machines of one kind, or choose another folder"
        )


def check_resumed(out: str | Path, here: str | None) -> None:
    """Refuse to resume a run that was refined in another type.

    Args:
        out: folder of the run, which need not exist.
        here: see `refiner_precision`.

    Raises:
        UserError: if the types differ.
    """
    if (Path(out) / MANIFEST).is_file():
        run, _ = read_identity(Path(out), MANIFEST)
        check_precision(here, run.get("precision"), out)
