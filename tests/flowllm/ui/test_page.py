"""The page for the browser: what it does, and a real browser that uses it."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_support import Browser
from cli_support import check_mistake, environment

import flowllm
from support import CSCL, ROOT, SALT, run_command, same_bits

streamlit = pytest.importorskip("streamlit", reason="streamlit is not installed")
from streamlit.testing.v1 import AppTest  # noqa: E402

from flowllm.ui.page import archive, elements, generate, predict  # noqa: E402

PAGE = ROOT / "flowllm" / "ui" / "page.py"


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("LiFePO4", None), (" NaCl ", None), ("Si,", "Si")),
        *(("Li,Fe, O", "Li,Fe,O"), ("Li Fe O", "Li,Fe,O")),
    ],
)
def test_a_text_is_a_formula_or_elements(text: str, expected: str | None) -> None:
    assert elements(text) == expected


def test_crystals_are_ranked_and_each_is_a_function_of_its_seed() -> None:
    model = flowllm.FlowLLM.from_pretrained(device="cpu")
    seen: list[int] = []
    crystals, failures = generate(model, "Cl,Na", 3, 5, seen.append)
    assert seen == [1, 2, 3] and len(crystals) + len(failures) == 3
    about = [str(crystal.properties["about"]).split() for crystal in crystals]
    scores = [float(words[1]) for words in about]  # log-likelihood SCORE nats, seed SEED
    assert scores == sorted(scores, reverse=True)
    for crystal in crystals:
        assert {e.symbol for e in crystal.structure.composition} == {"Na", "Cl"}
    (again,), _ = generate(model, "Cl,Na", 1, int(about[0][-1]), seen.append)
    assert same_bits(again.structure, crystals[0].structure)
    first, second = predict(model, "NaCl", 2, 0, relax=False)
    assert (first.id, second.id) == ("NaCl-1", "NaCl-2")
    assert str(first.properties["about"]).startswith("rock salt, from template ")


def test_the_archive_holds_a_cif_of_each_crystal() -> None:
    crystals = [flowllm.Crystal(id=name, structure=s) for name, s in (("a", SALT), ("b", CSCL))]
    with zipfile.ZipFile(io.BytesIO(archive(crystals))) as archived:
        assert archived.namelist() == ["a.cif", "b.cif"]
        assert b"_cell_length_a" in archived.read("a.cif")


def test_the_page_shows_crystals_and_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLLM_UI", json.dumps({"device": "cpu"}))
    page = AppTest.from_file(str(PAGE), default_timeout=300).run()
    assert not page.exception and not page.subheader
    page.number_input[0].set_value(2)
    page.button[0].click().run()
    assert not page.exception and not page.error
    assert [heading.value for heading in page.subheader] == ["2 crystals for NaCl"]
    assert [caption.value.split(",")[0] for caption in page.caption] == ["rank 1", "rank 2"]
    page.text_input[0].set_value("Xx3")
    page.button[0].click().run()
    (error,) = page.error
    assert "unknown element Xx" in error.value and not page.subheader


# --- the server ----------------------------------------------------------------------------------


def test_an_address_that_cannot_be_used_is_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        check_mistake(run_command("ui", "--port", port), "give another port (--port)")
    check_mistake(run_command("ui", "--port", 70000), "there is no port 70000")
    check_mistake(run_command("ui", "--address", "here"), "'here' is no address")
    check_mistake(run_command("ui", "--prior", "./nowhere"), "there is no model folder")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The page, served by the command."""
    port = free_port()
    command = [sys.executable, "-m", "flowllm", "ui", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)


def answer(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as found:
        return bytes(found.read())


def wait_for(url: str) -> None:
    import time

    for _ in range(600):
        try:
            assert answer(f"{url}/_stcore/health") == b"ok"
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError


def test_the_server_answers_on_this_machine_alone(url: str) -> None:
    wait_for(url)
    assert b"<title>Streamlit</title>" in answer(url)
    with pytest.raises(OSError):  # another address of this machine
        answer(url.replace("127.0.0.1", "127.0.0.2"))


def test_a_browser_makes_crystals_and_downloads_them(url: str, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        wait_for(url)
        browser.open(url)
        browser.enter("//input[@aria-label='Formula or elements']", "MgO")
        browser.enter("//input[@aria-label='Crystals']", "2")
        browser.click("//button[.//*[text()='Generate']]")
        browser.wait(lambda: browser.find("//*[contains(text(), '2 crystals for MgO')]"))
        browser.wait(lambda: browser.run("return document.querySelectorAll('canvas').length") >= 2)
        browser.click("//button[.//*[text()='CIF']]")
        file = browser.wait(lambda: next(tmp_path.glob("MgO-*.cif"), None))
        (crystal,) = flowllm.read(file)
        assert crystal.structure.composition.reduced_formula == "MgO"
        (tmp_path / "page.png").write_bytes(browser.screenshot())
        fetched: list[Any] = browser.run(
            "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        )
        assert [name for name in fetched if not name.startswith(url)] == []
    if keep := os.environ.get("FLOWLLM_SCREENSHOTS"):  # to look at the page
        (Path(keep) / "ui.png").write_bytes((tmp_path / "page.png").read_bytes())
