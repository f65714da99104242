"""The page of a file of crystals."""

from __future__ import annotations

from pathlib import Path

from flowllm.crystals.contents import is_standard_input
from flowllm.crystals.formats import stem
from flowllm.crystals.io import check_input, read
from flowllm.errors import UserError
from flowllm.system.extras import require
from flowllm.system.files import publish

_SUFFIX = ".html"


def show(
    file: str | Path,
    out: str | Path | None = None,
    *,
    limit: int = 100,
    skip_invalid: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a page with the crystals of a file, in the cells that the file gives.

    Each crystal can be turned and downloaded as CIF. The page needs no network: about 5 MB, and
    15 MB more for 100 crystals of 10 atoms.

    Args:
        file: crystals, anything that `flowllm.read` reads.
        out: the page; None: the name of `file` with `.html`, in the working directory.
        limit: show the first `limit` crystals.
        skip_invalid: leave bad rows out and count them.
        overwrite: replace the page if it exists.

    Returns:
        The page.

    Raises:
        UserError: if the page exists or has another suffix, the file cannot be read, or plotly or
            jinja2 is not installed.
        InvalidCrystal: if a row is bad and `skip_invalid` is not set.
    """
    for module in ("plotly", "jinja2"):
        require(module, "show")
    file = Path(file)
    name = "crystals" if is_standard_input(file) else stem(file.resolve().name)
    path = Path(f"{name}{_SUFFIX}") if out is None else Path(out)
    if path.suffix.lower() != _SUFFIX:
        raise UserError(f"{path} is no name of a page; give one that ends with {_SUFFIX}")
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists; choose another name (--out), or replace it with overwrite=True "
            "(--overwrite)"
        )
    check_input(file)
    crystals = read(file, reduce=False, limit=limit, skip_invalid=skip_invalid)
    from flowllm.crystals.views.page import page_text  # imports plotly

    count = f"{len(crystals)} crystal{'s' * (len(crystals) > 1)}"
    first = f"The first {limit} rows" if len(crystals) + crystals.skipped.total() >= limit else ""
    note = f"{first}: {count}." if first else f"{count}."
    path.parent.mkdir(parents=True, exist_ok=True)
    return publish(path, lambda p: p.write_text(page_text(crystals, name, note), encoding="utf-8"))
