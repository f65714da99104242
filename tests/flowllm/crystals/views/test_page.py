"""Pages of crystals: their content, the command that writes them, and a browser."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from browser_support import page_in_browser
from cli_support import check_mistake

from flowllm import Crystal, read, write
from support import CSCL, SALT, run_command, same

EVIL = "<img src=x onerror=alert(1)></script><b>&amp;"
# At the end: how many crystals are drawn, what went wrong and what was fetched.
PROBE = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => wrong.push("blocked " + event.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const text = [document.querySelectorAll(".crystal canvas").length, wrong.join(),
    performance.getEntriesByType("resource").length].join("|");
  document.body.append(Object.assign(document.createElement("pre"),
    { id: "found", textContent: text }));
}, 3000));
</script>"""


def crystals() -> list[Crystal]:
    about = {"e_above_hull": 0.0123456, "spacegroup": 225, "note": EVIL, "long": "x" * 99}
    return [
        Crystal(id="salt", structure=SALT, properties=about),
        Crystal(id=f"{EVIL}/2", structure=CSCL),
    ]


def test_a_page_holds_views_facts_and_cifs(tmp_path: Path) -> None:
    page = write(crystals(), tmp_path / "two.html").read_text("utf-8")
    assert page.startswith("<!doctype html>") and "<title>two</title>" in page
    assert page.count('<div class="crystal">') == 2
    assert "<dt>space group</dt><dd>Fm-3m (225)</dd>" in page
    assert "<dt>e_above_hull</dt><dd>0.01235</dd>" in page
    assert "<dt>spacegroup</dt>" not in page and "x" * 99 not in page
    assert EVIL not in page and "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    for (name, data), crystal in zip(
        re.findall(r'download="([^"]+)" href="data:chemical/x-cif;base64,([^"]+)"', page),
        crystals(),
        strict=True,
    ):
        assert "/" not in name and name.endswith(".cif")
        (tmp_path / "one.cif").write_bytes(base64.b64decode(data))
        (back,) = read(tmp_path / "one.cif", reduce=False)
        assert back.structure.composition == crystal.structure.composition
        assert same(back.structure.get_primitive_structure(),
                    crystal.structure.get_primitive_structure(), 1e-3)  # fmt: skip


def test_show_writes_a_page_beside_nothing_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(crystals(), tmp_path / "set.json")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shown = run_command("show", file, "--limit", 1)
    assert (shown.exit_code, shown.stdout) == (0, "set.html\n"), shown.stderr
    page = Path("set.html").read_text("utf-8")
    assert "The first 1 rows: 1 crystal." in page and page.count('<div class="crystal">') == 1
    check_mistake(run_command("show", file), "set.html exists; choose another name")
    check_mistake(run_command("show", file, "-o", "x.png"), "ends with .html")
    check_mistake(run_command("show", "nowhere.cif"), "no such file")
    assert [path.name for path in Path().iterdir()] == ["set.html"]
    assert run_command("show", file, "--overwrite").exit_code == 0
    assert "2 crystals." in Path("set.html").read_text("utf-8")
    assert run_command("show", ".", "-o", "../empty.html").exit_code == 2  # no crystals here


def test_a_browser_without_network_draws_the_crystals(tmp_path: Path) -> None:
    path = write(crystals(), tmp_path / "two.html")
    path.write_text(path.read_text("utf-8").replace("<title>", PROBE + "<title>", 1), "utf-8")
    dom = page_in_browser(path.as_uri(), tmp_path / "profile")
    found = re.search(r'<pre id="found">(.*?)</pre>', dom)
    assert found is not None
    canvases, wrong, fetched = found[1].split("|")
    assert int(canvases) >= 2 and (wrong, fetched) == ("", "0")
