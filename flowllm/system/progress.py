"""Progress bars on stderr that log lines do not break."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


@contextlib.contextmanager
def progress_bar(
    *, total: int, description: str = "", unit: str, show: bool = True, initial: int = 0
) -> Iterator[tqdm]:
    """Show a bar on stderr while the body runs; the console log is written above it.

    Args:
        total: number of items.
        description: stands before the bar.
        unit: plural noun for the items.
        show: False shows nothing, as does a stderr that is no terminal (`bar.disable` is then set).
        initial: items that were finished before.

    Yields:
        The bar; call `bar.update(count)`.
    """
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(
                total=total,
                initial=initial,
                desc=description or None,
                unit=f" {unit}",
                disable=None if show else True,  # None: silent where stderr is no terminal
            )
        )
        if not bar.disable:
            stack.enter_context(_fallback_handler())
            stack.enter_context(logging_redirect_tqdm())
        yield bar


@contextlib.contextmanager
def _fallback_handler() -> Iterator[None]:
    """Give the root logger logging's own last resort if it has no handler, to be redirected."""
    root, handler = logging.getLogger(), logging.lastResort
    if root.handlers or handler is None:
        yield
        return
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
