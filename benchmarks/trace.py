"""List of the functions and files that a crystal passes during one command.

    python benchmarks/trace.py sample -n 1 --formula NaCl

The command runs twice, the second time under a profile hook. The hook records the functions and
methods of `flowllm`, `llm_prior` and `rfm` that are called with a crystal: an argument, or an item
of a sequence among the arguments, is an instance of one of `CARRIERS`.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGES = ("flowllm", "llm_prior", "rfm")
CARRIERS = {
    *("Answer", "Crystal", "CrystalBatch", "CrystalRecord", "Geometry", "Integration", "Outcome"),
    *("Proposal", "Question", "Refinement", "Row", "Sample", "Structure"),
}


def carries(value: Any, depth: int = 2) -> bool:
    """Return True if a value is a crystal or a sequence with one."""
    if any(cls.__name__ in CARRIERS for cls in type(value).__mro__):
        return True
    if depth and isinstance(value, list | tuple) and value:
        return any(carries(item, depth - 1) for item in value[:3])
    return False


def main(arguments: list[str]) -> None:
    """Run a command under a profile hook and print the functions that it called."""
    import flowllm
    from flowllm.cli import cli

    root = Path(flowllm.__file__).parents[1]
    folders = tuple(str(root / package) + "/" for package in PACKAGES)
    seen: set[CodeType] = set()

    def hook(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in seen or not code.co_filename.startswith(folders):
            return
        count = code.co_argcount + code.co_kwonlyargcount
        count += bool(code.co_flags & 4) + bool(code.co_flags & 8)  # *args, **kwargs
        names = code.co_varnames[:count]
        if any(carries(frame.f_locals.get(name)) for name in names):
            seen.add(code)

    with tempfile.TemporaryDirectory() as folder:
        cli([*arguments, "--out", f"{folder}/first"], standalone_mode=False)
        sys.setprofile(hook)
        try:
            cli([*arguments, "--out", f"{folder}/second"], standalone_mode=False)
        finally:
            sys.setprofile(None)
    by_file: dict[str, list[str]] = defaultdict(list)
    for code in seen:
        if not code.co_name.startswith("<"):
            by_file[str(Path(code.co_filename).relative_to(root))].append(code.co_qualname)
    for file, names in sorted(by_file.items()):
        print(f"{file}: {', '.join(sorted(names))}")
    print(f"{sum(map(len, by_file.values()))} functions in {len(by_file)} files")


if __name__ == "__main__":
    main(sys.argv[1:])
