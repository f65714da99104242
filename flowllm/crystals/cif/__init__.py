"""CIFs: text to crystals that agree with all that the text says, and back.

`parsing` does the whole; `blocks` reads the syntax, `sites` the cell and the atom sites,
`operations`, `space_groups` and `symmetry` the symmetry, `orbits` applies it, `contents` checks
the result, and `repeats` finds a crystal that a file gives twice. `plain` is a fast path for CIFs
without symmetry as pymatgen writes them, and the writer.
"""

from flowllm.crystals.cif.parsing import CifCrystal, parse_cif, parse_cifs
from flowllm.crystals.cif.plain import cif_text, parse_plain_cif

__all__ = ["CifCrystal", "cif_text", "parse_cif", "parse_cifs", "parse_plain_cif"]
