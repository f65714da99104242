"""Fixtures of the tests of `llm_prior`."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_prior import Prior
from prior_support import make_base
from support import BUNDLED_PRIOR


@pytest.fixture(scope="module")
def prior() -> Prior:
    """The bundled prior, loaded once for each module."""
    return Prior.from_pretrained(BUNDLED_PRIOR)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any attempt to reach a host fails the test, even where the error is caught."""
    attempts: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        attempts.append(args)
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not attempts


@pytest.fixture
def base(tmp_path: Path) -> str:
    return make_base(tmp_path / "base")
