"""Models, scripted answers and crystals of the generation tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm import FlowLLM
from flowllm.crystals.io import Crystal, write
from llm_prior import proposals
from llm_prior.proposals import Question
from rfm import BaseConfig


@pytest.fixture(scope="module")
def model() -> FlowLLM:
    """The pair `bundled:sites`, with noise whatever the refiner has: its seed must show."""
    pair = "bundled:sites"
    model = FlowLLM.from_pretrained(prior=pair, refiner=pair, device="cpu")
    assert model.refiner is not None
    model.refiner.config.base = BaseConfig(position_sigma=0.05, cell_sigma=0.05)
    return model


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the prior answer these texts, by place in the batch, to every attempt."""

    def script(*texts: str) -> None:
        def generate_texts(
            prior: object, queue: deque[Question], **_: Any
        ) -> Iterator[tuple[int, str, bool]]:
            while queue:
                place = queue.popleft().place
                yield place, texts[place], True

        monkeypatch.setattr(proposals, "generate_texts", generate_texts)

    return script


@pytest.fixture(scope="session")
def rough() -> Callable[..., Crystal]:
    """Make a crystal of TiO with random cell and positions, by id and seed."""

    def make(name: str, seed: int = 0) -> Crystal:
        rng = np.random.default_rng(seed)
        lattice = Lattice.from_parameters(*rng.uniform(4, 6, 3), *rng.uniform(80, 100, 3))
        return Crystal(id=name, structure=Structure(lattice, ["Ti", "O"], rng.random((2, 3))))

    return make


@pytest.fixture(scope="module")
def two_crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of NaCl (id salt) and ZnS (id blende), each with its band gap."""
    salt = Structure(
        Lattice.from_parameters(4.02, 4.02, 4.02, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]
    )
    blende = Structure(
        Lattice.from_parameters(3.85, 3.85, 3.85, 60, 60, 60), ["Zn", "S"], [[0, 0, 0], [0.25] * 3]
    )
    crystals = [
        Crystal(id="salt", structure=salt, properties={"band_gap": 5.0}),
        Crystal(id="blende", structure=blende, properties={"band_gap": 2.0}),
    ]
    return write(crystals, tmp_path_factory.mktemp("files") / "two.jsonl")
