"""The form of the CIFs of a run: bad values, before anything is read or written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flowllm import UserError, relax, run_refinement, run_sampling
from flowllm.generation.infilling import infill
from flowllm.generation.mutation import mutate
from support import MP20_SAMPLE, run_command


@pytest.mark.parametrize(
    "function",
    [
        partial(run_sampling, 1),
        partial(run_refinement, MP20_SAMPLE),
        partial(mutate, MP20_SAMPLE, 1),
        partial(relax, MP20_SAMPLE),
        lambda *, out, cif: infill(MP20_SAMPLE, "O", structures=out, cif=cif),
    ],
    ids=["sample", "refine", "mutate", "relax", "infill"],
)
def test_an_unknown_form_is_refused(function: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cif 'cell' is unknown; choose one of symmetrized, p1"):
        function(out=tmp_path / "run", cif="cell")
    assert not (tmp_path / "run").exists()


def test_a_form_without_cifs_is_refused() -> None:
    result = run_command("infill", MP20_SAMPLE, "--mask", "O", "--cif", "p1")
    assert result.exit_code == 2
    assert "cif is the form of the CIFs in structures; give structures as well" in result.stderr
