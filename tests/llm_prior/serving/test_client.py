"""A server in a process of its own, with a stand-in for vLLM: what it writes, and its faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_prior import Prior, Proposal, log_likelihood, propose
from llm_prior.infilling import element_probabilities
from llm_prior.serving.client import ServedPrior, served_prior
from prior_support import adapter_on, refused
from support import BUNDLED_PRIOR, ROOT, SALT
from vllm_support import use_stand_in

WYCKOFF = ROOT / "flowllm" / "hub" / "bundled" / "wyckoff" / "prior"
REQUESTS: list[dict[str, Any]] = [
    {"formula": "NaCl", "num_atoms": 4},
    {"formula": "SrTiO3"},
    {"elements": "Fe, O"},
    {"spacegroup": 225},
    {},
] * 2
ANSWERS = {"seed": 1, "exclude_elements": ["Pb"]}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return use_stand_in(tmp_path, monkeypatch)


@pytest.fixture
def served(environment: Path) -> Iterator[ServedPrior]:
    prior = served_prior(WYCKOFF)
    yield prior
    prior.server.close()
    assert not list(environment.parents[1].glob("flowllm-vllm-*"))  # nothing is left behind


def said(proposals: Sequence[Proposal]) -> list[tuple[str, str, int]]:
    return [(p.prompt, p.text, p.attempts) for p in proposals]


# What it writes


@pytest.mark.parametrize("folder", [WYCKOFF, BUNDLED_PRIOR], ids=["wyckoff", "sites"])
def test_the_answers_are_those_of_the_plain_engine(folder: Path, environment: Path) -> None:
    served, plain = served_prior(folder), Prior.from_pretrained(folder)
    for drawing in (
        {"temperature": 0},
        {"temperature": 0.9, "top_p": 0.95},
        {"temperature": 0.7, "constrain": False, "max_attempts": 3},
    ):
        found = propose(served, REQUESTS, **ANSWERS, **drawing)
        assert said(found) == said(propose(plain, REQUESTS, **ANSWERS, **drawing))
        if drawing.get("constrain", True):
            assert all(proposal.structure is not None for proposal in found)
    served.server.close()


def test_an_adapter_is_put_on_its_base(environment: Path, tmp_path: Path) -> None:
    adapter_on(WYCKOFF).save_pretrained(tmp_path / "adapter")
    served = served_prior(tmp_path / "adapter")
    found = propose(served, REQUESTS, seed=0, temperature=0)
    plain = Prior.from_pretrained(tmp_path / "adapter")
    assert said(found) == said(propose(plain, REQUESTS, seed=0, temperature=0))
    whole = propose(Prior.from_pretrained(WYCKOFF), REQUESTS, seed=0, temperature=0)
    assert said(found) != said(whole)
    served.server.close()


def test_a_server_serves_until_its_prior_ends(served: ServedPrior) -> None:
    # It starts at the first request.
    assert propose(served, [], seed=0) == []
    assert served.server._server is None
    alone = said(propose(served, REQUESTS[:2], seed=3))

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        propose(served, REQUESTS, seed=4, on_finished=stop)
    # A call that was given up does not disturb the next.
    assert said(propose(served, REQUESTS[:2], seed=3)) == alone
    server = served.server._server
    assert server is not None and server._process.poll() is None
    served.server.close()
    assert server._process.poll() is not None
    assert said(propose(served, REQUESTS[:2], seed=3)) == alone  # by another one


def test_the_description_of_the_model_is_that_of_its_folder(served: ServedPrior) -> None:
    plain = Prior.from_pretrained(WYCKOFF)
    assert served.num_parameters == plain.num_parameters
    assert served.context_length == plain.context_length
    assert (served.fmt, served.info) == (plain.fmt, plain.info)


def test_a_served_prior_only_writes(served: ServedPrior, tmp_path: Path) -> None:
    only = "is served by vLLM, which writes texts and does nothing else"
    refused(lambda: log_likelihood(served, [SALT.get_primitive_structure()]), only)
    refused(lambda: element_probabilities(served, [SALT], ["Na"]), only)
    refused(lambda: served.save_pretrained(tmp_path / "copy"), only)


# Faults


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("STAND_IN_FAULT", "no room\nfor it", "vLLM fails: no room for it"),
        ("STAND_IN_NAN", "1", "the model computes NaN"),
        ("STAND_IN_DIES_AT", "3", "the process of vLLM was killed by SIGKILL"),
    ],
)
def test_a_fault_of_the_server_is_one_line(
    name: str, value: str, words: str, served: ServedPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    message = refused(lambda: propose(served, REQUESTS, seed=0), words)
    log = Path(message.partition("log is ")[2] or message.partition("see ")[2].split(",")[0])
    assert log.is_file()
    log.unlink()


def test_another_device_is_refused(environment: Path) -> None:
    served = served_prior(WYCKOFF, device="cuda:1")
    message = refused(lambda: propose(served, REQUESTS, seed=0), "computes on cpu", "on cuda")
    Path(message.partition("log is ")[2]).unlink()


@pytest.mark.parametrize(
    "script, words",
    [
        ("echo hello; sleep 5", "b'hello\\n', no answer"),
        ("echo '[1]'; sleep 5", "no answer"),
        ("exit 3", "ended with 3"),
        ("""echo '{"ready": "1"}'; echo '{"id": 0, "tokens": [5]}'; sleep 5""", "does not allow"),
        (
            """echo '{"ready": "1"}'; echo '{"id": 0, "tokens": [5], "complete": true}'; sleep 5""",
            "vLLM wrote a text that the grammar does not allow (token 5 may not come here)",
        ),
    ],
)
def test_a_server_that_is_none_is_one_line(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stand_in(tmp_path, monkeypatch, f'[ "$1" = -c ] && echo "[]" && exit 0\n{script}')
    served = served_prior(WYCKOFF)
    message = refused(lambda: propose(served, REQUESTS[:1], seed=0), words)
    if "see /" in message:
        Path(message.partition("see ")[2].split(",")[0]).unlink()
    served.server.close()


def test_the_server_ends_when_its_client_is_killed(environment: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from llm_prior import propose\n"
        "from llm_prior.serving.client import served_prior\n"
        f"prior = served_prior({str(WYCKOFF)!r})\n"
        "propose(prior, [{}], seed=0)\n"
        "print(prior.model._server._process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    ) as client:
        assert client.stdout is not None
        server = int(client.stdout.readline())
        client.send_signal(signal.SIGKILL)
        client.wait()
    deadline = time.monotonic() + 60
    while alive(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(server)
    assert not list(tmp_path.glob("flowllm-vllm-*"))


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
