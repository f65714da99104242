"""Models by name: names that are no model are refused."""

from __future__ import annotations

import pytest

from flowllm.errors import UserError
from flowllm.hub.locate import BUNDLED_PRIOR, resolve


@pytest.mark.parametrize("name", ["some one/model", "owner/model--x", "owner/model.", "ow:ner/m"])
def test_a_name_that_cannot_be_a_hub_id_is_refused_without_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    with pytest.raises(UserError) as error:
        resolve(name, BUNDLED_PRIOR)
    assert str(error.value) == (
        f"{name!r} is neither a folder here nor a valid hub id (OWNER/NAME); check the name"
    )
