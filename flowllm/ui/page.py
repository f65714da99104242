"""The page: a formula or elements in; crystals to turn, ranked, and to download out.

Streamlit runs this file from the top at each click; `st.session_state` keeps the crystals.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import streamlit as st

import flowllm

_MOST = 50  # crystals of a request
_BEST_OF = 2  # candidates of a crystal; the score of the better one ranks it
_POTENTIAL = "chgnet"
_COLUMNS = 3
_HELP = "A formula such as LiCoO2, or elements with commas such as Li,Co,O."


@st.cache_resource(show_spinner="loading the models")
def load(settings: str) -> tuple[flowllm.FlowLLM, Lock]:
    """Return the models, which all visitors share, and the lock of who uses them.

    Args:
        settings: arguments of `FlowLLM.from_pretrained` as JSON.
    """
    return flowllm.FlowLLM.from_pretrained(**json.loads(settings)), Lock()


def elements(text: str) -> str | None:
    """Return the elements that a text lists; None if it is a formula.

    Args:
        text: a formula, or elements with commas or spaces between them.

    Returns:
        Symbols with commas.
    """
    words = text.replace(",", " ").split()
    return ",".join(words) if len(words) > 1 or "," in text else None


def predict(
    model: flowllm.FlowLLM, formula: str, n: int, seed: int, relax: bool
) -> list[flowllm.Crystal]:
    """Return the structures of a formula, the best first.

    Args:
        model: prior and refiner.
        formula: of the compound.
        n: number of structures at most.
        seed: of all draws.
        relax: relax the candidates and rank them by energy.
    """
    potential = _POTENTIAL if relax else None
    return [
        flowllm.Crystal(
            id=found.id,
            structure=found.structure,
            properties={
                "about": f"{found.prototype or 'unnamed prototype'}, from {found.source}, "
                f"probability {100 * found.probability:.0f}%"
                + (
                    ""
                    if found.energy_per_atom is None
                    else f", {found.energy_per_atom:.3f} eV/atom"
                )
            },
        )
        for found in model.predict(formula.strip(), n, seed=seed, potential=potential)
    ]


def generate(
    model: flowllm.FlowLLM, symbols: str, n: int, seed: int, progress: Callable[[int], object]
) -> tuple[list[flowllm.Crystal], list[str]]:
    """Return crystals, the likeliest under the prior first, and why others failed.

    Args:
        model: prior and refiner.
        symbols: of the elements, with commas.
        n: number of crystals.
        seed: of crystal number 0; crystal i has the seed `seed + i`.
        progress: called with the number of finished crystals.
    """
    made: list[tuple[float, flowllm.Crystal]] = []
    failures: list[str] = []
    for i in range(n):
        (sample,) = model.sample(1, seed=seed + i, best_of=_BEST_OF, elements=symbols)
        if sample.structure is None:
            failures.append(sample.failure or "no reason is given")
        else:
            score = float("-inf") if sample.rank_score is None else sample.rank_score
            about = f"log-likelihood {score:.1f} nats, seed {seed + i}"
            crystal = flowllm.Crystal(
                id=f"crystal-{i}", structure=sample.structure, properties={"about": about}
            )
            made.append((score, crystal))
        progress(i + 1)
    made.sort(key=lambda pair: -pair[0])
    return [crystal for _, crystal in made], failures


def archive(crystals: list[flowllm.Crystal]) -> bytes:
    """Return a zip file with the CIF of each crystal.

    Args:
        crystals: at least one.
    """
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w") as archived:
        for file in sorted(flowllm.write(crystals, Path(folder) / "cif").iterdir()):
            archived.write(file, file.name)
    return content.getvalue()


def cif(crystal: flowllm.Crystal) -> str:
    """Return the CIF of a crystal.

    Args:
        crystal: any.
    """
    with tempfile.TemporaryDirectory() as folder:
        return flowllm.write(crystal, Path(folder) / "one.cif").read_text(encoding="utf-8")


def show(text: str, crystals: list[flowllm.Crystal], failures: list[str]) -> None:
    """Show crystals as cards.

    Args:
        text: the request.
        crystals: in the order of the page.
        failures: reasons of those that are missing.
    """
    st.subheader(f"{len(crystals)} crystals for {text}")
    for reason in sorted(set(failures)):
        st.warning(f"{failures.count(reason)} missing: {reason}")
    if not crystals:
        return
    st.download_button(
        "Download all (CIF, zip)", archive(crystals), "crystals.zip", on_click="ignore"
    )
    columns = st.columns(_COLUMNS)
    for place, crystal in enumerate(crystals):
        with columns[place % _COLUMNS], st.container(border=True):
            figure = flowllm.view(crystal)
            figure.update_layout(height=320)
            st.plotly_chart(figure, key=f"figure-{place}")
            st.caption(facts(place, crystal))
            st.download_button(
                "CIF",
                cif(crystal),
                f"{crystal.id}.cif",
                "chemical/x-cif",
                key=f"cif-{place}",
                on_click="ignore",  # the page stays as it is
            )


def facts(place: int, crystal: flowllm.Crystal) -> str:
    """Return a line about a crystal.

    Args:
        place: in the order of the page, from 0.
        crystal: with a few words `about` it.
    """
    structure = crystal.structure
    lengths = " ".join(f"{length:.2f}" for length in structure.lattice.abc)
    return (
        f"rank {place + 1}, {len(structure)} atoms, cell {lengths} Å, "
        f"{structure.volume / len(structure):.1f} Å³/atom, "
        f"{crystal.properties['about']}"
    )


def main() -> None:
    """Build the page."""
    st.set_page_config(page_title="FlowLLM", layout="wide")
    st.title("FlowLLM")
    st.write(
        "Enter a formula for its likeliest structures, or elements for crystals of them. A "
        "generated crystal need not be stable: relax it before you trust it."
    )
    with st.form("request"):
        text = st.text_input("Formula or elements", "NaCl", help=_HELP)
        n = st.number_input("Crystals", min_value=1, max_value=_MOST, value=3)
        seed = st.number_input(
            "Seed", min_value=0, value=0, help="The same seed, the same crystals."
        )
        relax = find_spec(_POTENTIAL) is not None and st.checkbox(
            "Relax the structures of a formula with CHGNet and rank them by energy (minutes)"
        )
        asked = st.form_submit_button("Generate")
    if asked:
        st.session_state.pop("found", None)
        bar = st.progress(0.0, "waiting for the models")
        try:
            model, lock = load(os.environ.get("FLOWLLM_UI", "{}"))
            with lock, st.spinner("working"):
                symbols = elements(text)
                if symbols is None:
                    crystals = predict(model, text, int(n), int(seed), relax)
                    failures: list[str] = []
                else:
                    crystals, failures = generate(
                        model,
                        symbols,
                        int(n),
                        int(seed),
                        lambda i: bar.progress(i / n, f"{i} of {n}"),
                    )
        except flowllm.FlowLLMError as error:
            st.error(str(error))
        else:
            st.session_state["found"] = (text, crystals, failures)
        bar.empty()
    found_before: Any = st.session_state.get("found")
    if found_before is not None:
        show(*found_before)


if __name__ == "__main__":
    main()
