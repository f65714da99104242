"""The number type of a refiner's matrix products is part of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flowllm import UserError
from flowllm.generation.precision import check_precision, check_resumed, refiner_precision
from flowllm.generation.sampling_run import load_models
from flowllm.hub.locate import BUNDLED_REFINER
from rfm import Refiner, matrix_precision
from rfm.refining import _fast_products


def test_it_is_the_type_that_refining_multiplies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for usable, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda usable=usable: usable)
        assert matrix_precision(cpu) == name
        with _fast_products(cpu):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert str(product.dtype) == f"torch.{name}"
    assert matrix_precision(torch.device("cuda")) == "float32"
    assert refiner_precision(None) is None
    refiner = Refiner.from_pretrained(BUNDLED_REFINER, device="cpu")
    assert refiner_precision(refiner) == matrix_precision(cpu)


def test_a_run_is_not_resumed_in_another_type(tmp_path: Path) -> None:
    out = tmp_path / "run"
    check_resumed(out, "float32")
    out.mkdir()
    for there in ("float32", None):
        (out / "manifest.json").write_text(json.dumps({"run": {"precision": there}, "info": {}}))
        check_resumed(out, "float32")
    (out / "manifest.json").write_text(json.dumps({"run": {"precision": "bfloat16"}, "info": {}}))
    check_resumed(out, None)  # the models differ, which is another refusal
    with pytest.raises(
        UserError, match="run is refined in bfloat16, and this machine refines in f"
    ):
        check_resumed(out, "float32")


def test_workers_refine_in_the_type_of_the_run() -> None:
    here = matrix_precision(torch.device("cpu"))
    assert load_models(None, BUNDLED_REFINER, "cpu", precision=here).refiner is not None
    other = {"bfloat16": "float32", "float32": "bfloat16"}[here]
    with pytest.raises(UserError, match=f"the run is refined in {other}, and this machine refine"):
        load_models(None, BUNDLED_REFINER, "cpu", precision=other)
    check_precision(None, other, "the run")
