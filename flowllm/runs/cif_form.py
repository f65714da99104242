"""The form of the CIFs that a run ends with."""

from __future__ import annotations

from typing import Literal, get_args

from flowllm.system.options import OptionError

CifForm = Literal["symmetrized", "p1"]
CIF_FORMS: tuple[CifForm, ...] = get_args(CifForm)


def check_cif_form(form: str) -> None:
    """Check the argument `cif` of a run.

    Args:
        form: `symmetrized` or `p1`.

    Raises:
        OptionError: if it is neither.
    """
    if form not in CIF_FORMS:
        raise OptionError("cif", f"{form!r} is unknown; choose one of {', '.join(CIF_FORMS)}")
