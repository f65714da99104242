"""pymatgen warns wherever it sorts a noble gas by electronegativity; no user can mend that."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def electronegativity_unheard() -> Iterator[None]:
    """Leave out the warning that helium, neon or argon has no electronegativity."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No Pauling electronegativity", UserWarning)
        yield
