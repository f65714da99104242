"""The packages that the environment of vLLM must have."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from llm_prior.serving.environment import _MODULES
from support import ROOT

WYCKOFF = ROOT / "flowllm" / "hub" / "bundled" / "wyckoff" / "prior"
# What vLLM's own requirements, torch and transformers, bring along.
BROUGHT = {"tokenizers", "safetensors"}


def imported(path: Path) -> set[str]:
    """The packages that a module imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


def test_the_server_imports_only_packages_that_the_check_looks_for() -> None:
    loaded = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, llm_prior.serving.server\n"
            "from llm_prior.serving.rows import Constraints\n"
            f"Constraints({str(WYCKOFF)!r}).find({{'formula': 'NaCl'}}, []).cursor()\n"
            "names = [m for m in sys.modules if m.startswith('llm_prior')]\n"
            "print(*(sys.modules[name].__file__ for name in names), sep='\\n')",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(loaded) > 10
    packages = set().union(*(imported(Path(file)) for file in loaded))
    packages -= {*sys.stdlib_module_names, "llm_prior"}
    assert packages <= {*_MODULES, *BROUGHT}
    assert {"spglib", "pymatgen"} <= packages  # so that the test sees them at all
