"""vLLM itself, where `tools/check_vllm.sh` has made an environment; skipped without one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_prior import Prior, Proposal, propose
from llm_prior.serving.client import served_prior
from prior_support import adapter_on
from support import ROOT

pytestmark = pytest.mark.skipif(
    "FLOWLLM_VLLM_PYTHON" not in os.environ,
    reason="there is no environment with vLLM; run tools/check_vllm.sh FOLDER",
)
BUNDLED = ROOT / "flowllm" / "hub" / "bundled"
DEVICE = os.environ.get("VLLM_DEVICE", "cpu")
FORMULAS = ("NaCl", "SrTiO3", "LiFePO4", "Fe2O3", "MgAl2O4", "Cu3Au", "GaAs", "CaF2")


def texts(proposals: Sequence[Proposal]) -> list[str]:
    return [proposal.text for proposal in proposals]


def differing(found: Sequence[Proposal], expected: Sequence[Proposal]) -> int:
    return sum(a != b for a, b in zip(texts(found), texts(expected), strict=True))


@pytest.mark.parametrize("layout", ["wyckoff", "sites"])
def test_sixty_four_answers_are_exact_and_those_of_the_plain_engine(layout: str) -> None:
    served = served_prior(BUNDLED / layout / "prior", device=DEVICE)
    plain = Prior.from_pretrained(BUNDLED / layout / "prior", device=DEVICE)
    requests = [{"formula": formula} for formula in FORMULAS] * 8
    drawn = propose(served, requests, seed=0)
    for proposal, request in zip(drawn, requests, strict=True):
        assert proposal.structure is not None and proposal.attempts == 1
        assert proposal.structure.composition.reduced_formula == request["formula"]
    # On a CPU both compute in float32. Where two tokens are as likely, rounding decides.
    if DEVICE == "cpu":
        assert differing(drawn, propose(plain, requests, seed=0)) <= 2
        greedy = propose(served, requests[:8], seed=0, temperature=0)
        assert texts(greedy) == texts(propose(plain, requests[:8], seed=0, temperature=0))
    served.server.close()


def test_an_adapter_is_put_on_its_base(tmp_path: Path) -> None:
    adapter_on(BUNDLED / "wyckoff" / "prior").save_pretrained(tmp_path / "adapter")
    served = served_prior(tmp_path / "adapter", device=DEVICE)
    requests = [{"formula": formula} for formula in FORMULAS]
    found = propose(served, requests, seed=0, temperature=0)
    assert all(proposal.structure is not None for proposal in found)
    if DEVICE == "cpu":
        plain = Prior.from_pretrained(tmp_path / "adapter")
        assert texts(found) == texts(propose(plain, requests, seed=0, temperature=0))
    base = Prior.from_pretrained(BUNDLED / "wyckoff" / "prior", device=DEVICE)
    assert differing(found, propose(base, requests, seed=0, temperature=0)) > 0
    served.server.close()
