"""Fixtures of the tests of the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.cif import cif_text
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER
from support import SALT, disordered


def _not_finite() -> dict[str, Any]:
    crystal = SALT.as_dict()
    crystal["lattice"]["matrix"][0][0] = float("nan")
    return crystal


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad input of every kind."""
    folder = tmp_path_factory.mktemp("files")
    texts = {
        "nacl.cif": cif_text(SALT),
        "large.cif": cif_text(SALT * (3, 1, 1)),
        "disorder.cif": disordered().to(fmt="cif"),
        "copper.cif": cif_text(Structure(Lattice.cubic(2.6), ["Cu"], [[0, 0, 0]])),
        "nothing.cif": "data_x\nnothing",
        "not_finite.json": json.dumps(_not_finite()),
        "wrong_column.csv": "material_id,text\nmp-1,x\n",
        "empty.csv": "material_id,cif\n",
        "run_of_mine": "text",
        "recipe.yaml": "model: {architecture: {}}\ntraining: {momentum: 3}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "no_cifs").mkdir()
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("my work")
    for model in (BUNDLED_PRIOR, BUNDLED_REFINER):
        for kind in ("missing", "cut"):
            # Without its card, which would say first that these are other weights.
            ignore = shutil.ignore_patterns("README.md")
            weights = Path(shutil.copytree(model, folder / f"{model.name}_{kind}", ignore=ignore))
            weights = weights / "model.safetensors"
            content = weights.read_bytes()
            weights.unlink()
            if kind == "cut":
                weights.write_bytes(content[: len(content) // 2])
    return folder
