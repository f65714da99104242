"""Names of prototypes, checked against the bundled library."""

from __future__ import annotations

from collections import defaultdict

import pytest
from pymatgen.core import Structure

from flowllm.crystals.symmetry import symmetry_of
from flowllm.prediction.names import ARCHETYPES, crystal_of_gene, prototype_name
from flowllm.templates.library import bundled
from support import CSCL, SALT, perovskite

# Reduced formulas of training crystals that textbooks give for the prototype.
KNOWN = {
    "fcc": "Au",
    "hcp": "Mg",
    "diamond": "Ge",
    "rock salt": "CeO",
    "CsCl": "ZrCo",
    "zinc blende": "ZnS",
    "wurtzite": "ZnO",
    "rutile": "GeO2",
    "fluorite": "UO2",
    "antifluorite": "Li2S",
    "spinel": "Cr2CoO4",
    "CdI2": "FeI2",
    "Cu3Au": "InCe3",
    "ilmenite": "MgCoO3",
    "chalcopyrite": "GaAgS2",
    "2H-MoS2": "WS2",
    "calcite": "NiCO3",
}


@pytest.mark.parametrize(
    ("structure", "name"), [(SALT, "rock salt"), (CSCL, "CsCl"), (perovskite(), "perovskite")]
)
def test_well_known_structures_have_their_names(structure: Structure, name: str) -> None:
    symmetry = symmetry_of(structure)
    assert symmetry is not None
    assert prototype_name(symmetry.crystal) == name


def test_every_name_belongs_to_crystals_of_the_library() -> None:
    library = bundled()
    groups = {int(gene.split()[0]) for _, gene in ARCHETYPES}
    found: dict[str, set[str]] = defaultdict(set)
    for row in range(len(library)):
        if int(library._groups[row]) in groups:
            crystal = library.crystal(row)
            name = prototype_name(crystal)
            if name is not None:
                counts = crystal.composition
                divisor = min(counts.values())
                ratios = {symbol: number / divisor for symbol, number in counts.items()}
                found[name].add("".join(f"{s}{n:g}" for s, n in sorted(ratios.items())))
    assert found.keys() >= {name for name, _ in ARCHETYPES} - {"bcc"}
    for name, formula in KNOWN.items():
        from pymatgen.core import Composition

        counts = Composition(formula).reduced_composition.get_el_amt_dict()
        divisor = min(counts.values())
        text = "".join(f"{s}{n / divisor:g}" for s, n in sorted(counts.items()))
        assert text in found[name], name


def test_a_structure_and_its_antitype_differ_by_the_place_of_the_anion() -> None:
    assert prototype_name(crystal_of_gene("225 Zr:a O:c")) == "fluorite"
    assert prototype_name(crystal_of_gene("225 Na:c O:a")) == "antifluorite"
    assert prototype_name(crystal_of_gene("221 Ba:b Ti:a O:d")) == "perovskite"
    assert prototype_name(crystal_of_gene("221 C:a Al:b Fe:d")) == "antiperovskite"


def test_most_structures_have_no_name() -> None:
    assert prototype_name(crystal_of_gene("62 Na:c Cl:d")) is None
    assert prototype_name(crystal_of_gene("1 Li:a Na:a K:a Rb:a Cs:a F:a Cl:a")) is None


def test_every_row_has_a_prototype_of_its_own() -> None:
    names = [name for name, _ in ARCHETYPES]
    assert len(set(names)) == len(names)
    assert [prototype_name(crystal_of_gene(gene)) for _, gene in ARCHETYPES] == names
