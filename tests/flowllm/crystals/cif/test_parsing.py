"""Crystals of CIFs: the right one, with a warning of what was assumed, or a refusal."""

from __future__ import annotations

import logging
import re

import gemmi
import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Structure
from pymatgen.io.cif import CifWriter

from cif_support import CUBIC, SALT, build, crystal, refusal
from flowllm.crystals.cells import make_structure
from flowllm.crystals.cif import parse_cif
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.io import read
from flowllm.errors import InvalidCrystal
from support import MP20_SAMPLE, SHARED, cif, perovskite, run_command

CASES = SHARED / "cases"
HEXAGONAL = (3.25, 3.25, 5.207, 90, 90, 120)
RHOMBOHEDRAL = (10.473, 10.473, 10.473, 24.167, 24.167, 24.167)
BI2TE3 = ("Bi1 Bi 0.4001 0.4001 0.4001", "Te1 Te 0 0 0", "Te2 Te 0.2095 0.2095 0.2095")
BI2TE3_HEXAGONAL = ("Bi1 Bi 0 0 0.4001", "Te1 Te 0 0 0", "Te2 Te 0 0 0.2095")
BI2TE3_CELL = (4.385, 4.385, 30.487, 90, 90, 120)
MONOCLINIC = (5.0, 6.0, 7.0, 90, 100, 90)
MONOCLINIC_C = (5.0, 6.0, 7.0, 90, 90, 100)
GENERAL = ("Li1 Li 0.05 0.37 0.71",)
OPERATIONS_225 = [o.triplet() for o in gemmi.find_spacegroup_by_name("F m -3 m").operations()]


def case(name: str) -> str:
    """Return the text of a case, where they are at hand."""
    found = sorted(CASES.glob(name))
    if not found:
        pytest.skip(f"{CASES / name} is not at hand")
    return found[0].read_text()


# --- A space group without operations


@pytest.mark.parametrize(
    ("group", "formula"),
    [("F m 3 m", "Na4 Cl4"), ("Fm3m", "Na4 Cl4"), ("F 4/m -3 2/m", "Na4 Cl4"), ("225", "Na4 Cl4")],
)
def test_symbols_are_expanded(group, formula):
    found, notes = crystal(build(group=group))
    assert found.composition == Composition(formula) and not notes


@pytest.mark.parametrize(
    ("cell", "group", "count"),
    [
        (MONOCLINIC, "P 1 21/c 1", 4),
        (MONOCLINIC, "P21/c", 4),
        (MONOCLINIC_C, "P 21/c", None),  # there is no such symbol with this axis
        (MONOCLINIC_C, "P 1 1 21/b", 4),
        (MONOCLINIC_C, "P 21/b", 4),
        (MONOCLINIC_C, "B b", 4),
        (MONOCLINIC, "C 2/c", 8),
        (MONOCLINIC, "P 1 1 21/b", None),
        (MONOCLINIC, "P m -3 m", None),
        (BI2TE3_CELL, "R -3 m :H", 36),
        (BI2TE3_CELL, "R -3 m", 36),
        (BI2TE3_CELL, "R -3 m :R", None),
        (RHOMBOHEDRAL, "R -3 m :R", 12),
        (RHOMBOHEDRAL, "R -3 m", 12),
        (RHOMBOHEDRAL, "R -3 m :H", None),
    ],
)
def test_the_cell_decides_the_axes_or_contradicts(cell, group, count):
    text = build(GENERAL, cell=cell, group=group)
    if count is None:
        error = refusal(text)
        assert error.reason == "wrong_symmetry" and "the cell does not have the symm" in str(error)
        assert group in str(error)
    else:
        assert len(crystal(text)[0]) == count


@pytest.mark.parametrize("group", ["F m 3 q", "H -3 m", "P -3 m", "nonsense"])
def test_an_unknown_symbol_is_refused_by_name(group):
    error = refusal(build(group=group))
    assert error.reason == "wrong_symmetry"
    assert f"_symmetry_space_group_name_H-M {group!r} is no known space group" in str(error)


@pytest.mark.parametrize(
    ("tag", "value", "warning"),
    [
        ("_space_group_name_Hall", "'-F 4 2 3'", None),
        ("_symmetry_space_group_name_Hall", "'-F 4 2 3'", None),
        ("_space_group_IT_number", "225", "only the number of its space group is given"),
        ("_symmetry_Int_Tables_number", "225", "F m -3 m is assumed"),
        ("_space_group_name_Schoenflies", "Oh.5", "F m -3 m is assumed"),
        ("_space_group_name_H-M_alt", "'F m -3 m'", None),
        ("_space_group.name_H-M_full", "'F 4/m -3 2/m'", None),
    ],
)
def test_other_names_of_the_group(tag, value, warning):
    found, notes = crystal(build(group=None, extra=f"{tag} {value}"))
    assert found.composition == Composition("Na4 Cl4")
    assert len(notes) == (warning is not None) and all(warning in note for note in notes)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("_space_group_name_Hall 'F m -3 m'", "the Hall symbol 'F m -3 m' is not known"),
        ("_space_group_IT_number 231", "_space_group_IT_number '231' is no number from 1 to 230"),
        ("_space_group_name_Schoenflies Oh.99", "'Oh.99' is not known"),
        ("_space_group_magn.name_BNS 'P_I 4/mnc'", "a magnetic space group is named without"),
        ("_cell_modulation_dimension 1", "the structure is modulated"),
    ],
)
def test_other_names_that_are_not_known(extra, message):
    assert message in str(refusal(build(group=None, extra=extra)))


def test_no_symmetry_at_all_is_a_warning():
    found, notes = crystal(build(group=None))
    assert found.composition == Composition("NaCl")
    assert notes == ("block x: no symmetry is given; P 1 is assumed",)


# --- The origin


def silicon(group: str, **values: object) -> str:
    return build(("Si1 Si 0 0 0",), cell=(5.431, 5.431, 5.431, 90, 90, 90), group=group, **values)


def test_the_origin_by_its_suffix_by_the_contents_or_not_at_all():
    assert len(crystal(silicon("F d -3 m :1"))[0]) == 8
    assert len(crystal(silicon("F d -3 m :2"))[0]) == 16
    found, (note,) = crystal(silicon("F d -3 m", formula="Si", z=8))
    assert len(found) == 8
    assert "F d -3 m :1 is assumed, since F d -3 m :2 cannot be: the cell holds Si16" in note
    assert len(crystal(silicon("F d -3 m", formula="Si", z=16))[0]) == 16
    error = refusal(silicon("F d -3 m", formula="Si"))
    assert error.reason == "wrong_symmetry" and "name the origin or list the operations" in str(
        error
    )
    error = refusal(silicon("F d -3 m", formula="Si", z=5))
    assert "F d -3 m :1: the cell holds Si8" in str(error) and ":2: the cell holds" in str(error)


def test_the_origin_by_multiplicities():
    columns = ("label", "type_symbol", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z")
    for multiplicity in (8, 16):
        sites = (f"Si1 Si {multiplicity} 0 0 0",)
        found, _ = crystal(build(sites, group="F d -3 m", columns=columns))
        assert len(found) == multiplicity


# --- Listed operations against everything else


@pytest.mark.parametrize("tag", ["_symmetry_equiv_pos_as_xyz", "_space_group_symop.operation_xyz"])
def test_listed_operations_under_old_and_new_tags(tag):
    text = build(operations=OPERATIONS_225).replace("_symmetry_equiv_pos_as_xyz", tag)
    found, notes = crystal(text)
    assert found.composition == Composition("Na4 Cl4") and not notes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"operations": ["x,y,z"]}, "'F m -3 m' is group 225, but the list of 1 operations"),
        ({"operations": OPERATIONS_225[:48]}, "'F m -3 m' is group 225, but the list of 48"),
        ({"operations": OPERATIONS_225[:47]}, "the 47 symmetry operations are no group"),
        ({"operations": OPERATIONS_225, "group": "P 1"}, "'P 1' is group 1, but"),
        ({"operations": OPERATIONS_225, "cell": MONOCLINIC}, "the cell does not have the symmetry"),
        ({"extra": "_space_group_IT_number 221"}, "_space_group_IT_number 221 is another group"),
        ({"extra": "_space_group_name_Hall '-P 4 2 3'"}, "'F m -3 m' is group 225"),
        (
            {"operations": OPERATIONS_225, "extra": "_space_group_name_Hall '-P 4 2 3'"},
            "the Hall symbol is '-P 4 2 3'",
        ),
        ({"extra": "_space_group_name_H-M_ref 'P m -3 m'"}, "_space_group_name_H-M_ref"),
    ],
)
def test_contradictions_are_refused(values, message):
    error = refusal(build(**values))
    assert error.reason == "wrong_symmetry" and message in str(error)


def test_two_lists_that_differ():
    extra = "loop_\n_space_group_symop_operation_xyz\nx,y,z\n-x,-y,-z"
    error = refusal(build(operations=["x,y,z"], extra=extra))
    assert "_symmetry_equiv_pos_as_xyz differ; keep one" in str(error)


def test_a_contradiction_without_consequence_is_a_warning():
    cscl = ("Cs1 Cs 0 0 0", "Cl1 Cl 0.5 0.5 0.5")
    found, notes = crystal(build(cscl, group="P m -3 m", operations=["x,y,z"]))
    assert found.composition == Composition("CsCl")
    assert "which the list of 1 operations contradicts; the atoms are the same" in notes[0]
    # All atoms of the cell are listed, beside the symbol of the group.
    salt = Structure.from_spacegroup(
        "Fm-3m", perovskite(5.64).lattice, ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )
    text = cif(salt).replace("'P 1'", "'F m -3 m'").replace("number   1\n", "number 225\n")
    found, notes = crystal(text)
    assert len(found) == 8 and len(notes) == 2


def test_another_setting_than_the_symbol_is_a_warning():
    operations = [o.triplet() for o in gemmi.find_spacegroup_by_name("P 1 21/n 1").operations()]
    found, notes = crystal(build(GENERAL, cell=MONOCLINIC, group="P 21/c", operations=operations))
    assert len(found) == 4 and "is another setting of the group" in notes[0]


def test_an_origin_that_the_list_contradicts_is_refused():
    operations = [o.triplet() for o in gemmi.find_spacegroup_by_name("F d -3 m:2").operations()]
    assert "F d -3 m :1" in str(refusal(silicon("F d -3 m :1", operations=operations)))
    assert len(crystal(silicon("F d -3 m :2", operations=operations))[0]) == 16
    assert len(crystal(silicon("F d -3 m", operations=operations))[0]) == 16


def test_an_unknown_symbol_beside_operations_is_a_warning():
    found, notes = crystal(build(group="F M 3 M (fcc)", operations=OPERATIONS_225))
    assert len(found) == 8 and "is no known space group and not compared" in notes[0]


def test_identity_that_is_not_listed_is_assumed():
    found, notes = crystal(build(GENERAL, group="P -1", operations=["-x,-y,-z"]))
    assert len(found) == 2 and "x, y, z is not listed" in notes[0]


# --- Rounded positions


@pytest.mark.parametrize("third", ["0.333", "0.3333", "0.33333", "0.333000", "0.33", "0.3330(5)"])
@pytest.mark.parametrize("two_thirds", ["0.667", "0.666"])
def test_rounded_special_positions_are_one_atom(third, two_thirds):
    sites = (f"Zn1 Zn {third} {two_thirds} 0", f"O1 O {third} {two_thirds} 0.382")
    found, notes = crystal(build(sites, cell=HEXAGONAL, group="P 63 m c", formula="O Zn", z=2))
    assert found.composition == Composition("Zn2O2")
    for site in found:
        assert sorted(site.frac_coords[:2]) == pytest.approx([1 / 3, 2 / 3], abs=1e-12)
    assert "Zn1, O1) are moved onto symmetry elements" in notes[0]


@pytest.mark.parametrize("position", ["0.34 0.66 0", "0.34 0.68 0", "0.3 0.7 0.1"])
def test_images_that_nearly_coincide_without_rounding_are_refused(position):
    error = refusal(build((f"Zn1 Zn {position}",), cell=HEXAGONAL, group="P 63 m c"))
    assert error.reason == "coinciding_atoms" and "images of site Zn1 are" in str(error)


def test_the_multiplicity_tells_a_general_position_from_a_rounded_one():
    columns = ("label", "type_symbol", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z")

    def text(multiplicity: object, position: str) -> str:
        site = f"Zn1 Zn {multiplicity} {position}"
        return build((site,), cell=HEXAGONAL, group="P 63 m c", columns=columns)

    assert len(crystal(text(2, "0.33 0.67 0"))[0]) == len(crystal(text("?", "0.33 0.67 0"))[0]) == 2
    found, notes = crystal(text(12, "0.33 0.68 0"))
    assert len(found) == 12 and "images of site Zn1 are" in notes[0]
    assert "make 2 atoms of it" in str(refusal(text(12, "0.333333 0.666667 0")))


def test_two_sites_at_one_place_are_refused_and_near_ones_named():
    error = refusal(build((*SALT, "Na2 Na 0.5 0 0.5")))
    assert error.reason == "coinciding_atoms" and "Na1 and Na2 are 0 A apart" in str(error)
    _, notes = crystal(build((*SALT, "H1 H 0.05 0.05 0.05")))
    assert "the sites Na1 and H1 are 0.49 A apart" in notes[0]


# --- Formula, Z, multiplicities, volume


@pytest.mark.parametrize(
    ("formula", "z", "message"),
    [
        ("Na Cl", 4, None),
        ("Na4 Cl4", 4, None),  # as pymatgen writes it
        ("Na4 Cl4", 1, None),
        ("Cl1 Na1.00(1)", None, None),
        ("NaCl", "?", None),
        ("Na Cl", 1, "the cell holds Cl4 Na4, but the CIF says 1 times 'Na Cl'"),
        ("Na Cl", 8, "8 times 'Na Cl'"),
        ("Na2 Cl", None, "the sites do not give the CIF's own formula 'Na2 Cl', but Cl4 Na4"),
        ("Na8 Cl8", None, "less than the formula 'Na8 Cl8'"),
        ("Na Cl H2", 4, "there is no H"),
        ("Na", 4, "which has no Cl"),
        ("Na Cl", 0, "_cell_formula_units_Z '0' is no number"),
    ],
)
def test_formula_and_z(formula, z, message):
    text = build(formula=formula, z=z)
    if message is None:
        assert crystal(text)[0].composition == Composition("Na4Cl4")
    else:
        error = refusal(text)
        assert error.reason == "wrong_formula" and message in str(error)


def test_a_formula_that_is_not_understood_is_a_warning():
    assert "'Na Cl x' is not understood" in crystal(build(formula="Na Cl x"))[1][0]


def test_multiplicities():
    columns = (
        "label",
        "type_symbol",
        "site_symmetry_multiplicity",
        "fract_x",
        "fract_y",
        "fract_z",
    )

    def text(one: object, other: object) -> str:
        sites = (f"Na1 Na {one} 0 0 0", f"Cl1 Cl {other} 0.5 0.5 0.5")
        return build(sites, columns=columns)

    assert len(crystal(text(4, "?"))[0]) == 8
    assert len(crystal(text(48, 48))[0]) == 8  # SHELXL: the order of the site symmetry
    error = refusal(text(4, 8))
    assert "site Cl1 has a multiplicity of 8" in str(error) and error.reason == "wrong_symmetry"


def test_the_volume_is_checked():
    assert not crystal(build(extra="_cell_volume 179.4(2)"))[1]
    error = refusal(build(extra="_cell_volume 97"))
    assert error.reason == "bad_cell" and "_cell_volume is 97" in str(error)
    assert "A^3 per atom are unusual" in crystal(build(cell=(20, 20, 20, 90, 90, 90)))[1][0]


# --- The cell


def test_a_missing_angle_is_90_with_a_warning_and_an_unknown_one_is_refused():
    text = build()
    found, notes = crystal(text.replace("_cell_angle_beta 90\n", ""))
    assert len(found) == 8 and "no _cell_angle_beta; 90 degrees are assumed" in notes[0]
    error = refusal(text.replace("_cell_angle_beta 90", "_cell_angle_beta ?"))
    assert error.reason == "bad_cell" and "_cell_angle_beta: is missing" in str(error)


@pytest.mark.parametrize("length", ["?", "0", "-5.64", "nan", "5,64", "a"])
def test_a_length_that_is_no_length(length):
    assert refusal(build(cell=(length, *CUBIC[1:]))).reason == "bad_cell"


def test_angles_of_no_cell():
    assert "no cell has the angles 90 30 30" in str(refusal(build(cell=(5, 5, 5, 90, 30, 30))))


def test_numbers_with_uncertainties():
    found, _ = crystal(build(cell=("5.640(2)", "5.640(2)", "5.640(2)", "90.0(1)", 90, 90)))
    assert found.lattice.a == 5.64


# --- Sites


@pytest.mark.parametrize("share", ["?", ".", "1", "1.0", "1.000(3)"])
def test_full_occupancy(share):
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")
    text = build([f"{site} {share}" for site in SALT], columns=columns)
    assert len(crystal(text)[0]) == 8


@pytest.mark.parametrize(
    ("sites", "columns", "reason", "message"),
    [
        (["O1 O 0 0 0 0.5"], ["occupancy"], "disorder", "site O1 is disordered (O:0.5)"),
        (["O1 O 0 0 0 x"], ["occupancy"], "unreadable", "the occupancy 'x' is no number"),
        (["O1 O 0 0 0 2"], ["attached_hydrogens"], "unknown_element", "has 2 hydrogen atoms"),
        (["O1 O 0 0 0 1", "O2 O .5 0 0 2"], ["disorder_group"], "disorder", "are alternatives"),
        (["O1 O 0 0 0 -1"], ["disorder_group"], "disorder", "are alternatives"),
        (["Wat O 0 0 0"], [], "unknown_element", "site Wat stands for a group of atoms"),
        (["OH1 O 0 0 0"], [], "unknown_element", "site OH1 stands for a group of atoms"),
        (["O1W O 0 0 0"], [], "unknown_element", "site O1W stands for a group of atoms"),
        (["O1 OH 0 0 0"], [], "unknown_element", "site O1: 'OH' is no element"),
        (["O1 H2O 0 0 0"], [], "unknown_element", "site O1: 'H2O' is no element"),
        (["M1 'Na,K' 0 0 0"], [], "unknown_element", "site M1: 'Na,K' is no element"),
        (["Q1 ? 0 0 0"], [], "unknown_element", "site Q1: no element is given"),
        (["OA1 ? 0 0 0"], [], "unknown_element", "site OA1: no element is given"),
        (["O1 O ? 0 0"], [], "unreadable", "site O1: the position '?' is no number"),
        (["O1 O oops 0 0"], [], "unreadable", "site O1: the position 'oops' is no number"),
    ],
)
def test_sites_that_are_no_atoms(sites, columns, reason, message):
    names = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", *columns)
    error = refusal(build(sites, group="P 1", columns=names))
    assert error.reason == reason and message in str(error)


@pytest.mark.parametrize(
    ("label", "symbol", "formula", "element"),
    [
        ("Na1", "Na1+", None, "Na"),
        ("Na1", "Na+", None, "Na"),
        ("O1", "O2-", None, "O"),
        ("O1", "O-2", None, "O"),
        ("Na1", "NA", None, "Na"),
        ("Na1", "Na1", None, "Na"),
        ("D1", "D", "D", "H"),
        ("T1", "?", None, "H"),
        ("Cl(1)", "?", None, "Cl"),
        ("OA1", "?", "O", "O"),
        ("SiT", "?", "Si", "Si"),
        ("HO1", "?", "H", "H"),
        ("OW1", "O", "O W", None),
    ],
)
def test_elements(label, symbol, formula, element):
    sites = [f"{label} {symbol} 0 0 0"]
    if element is None:  # oxygen that is bonded to tungsten
        sites.append("W1 W 0.5 0.5 0.5")
    found, _ = crystal(build(sites, group="P 1", formula=formula))
    assert len(found) == len(sites) and (element is None or found[0].specie.symbol == element)


def test_ions_of_one_element_share_a_site():
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")
    sites = ["Fe1 Fe2+ 0 0 0 0.5", "Fe2 Fe3+ 0 0 0 0.5", "O1 O2- 0.5 0.5 0.5 1"]
    assert crystal(build(sites, columns=columns))[0].composition == Composition("Fe4O4")


def test_dummy_sites_are_left_out():
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "calc_flag")
    sites = ["Na1 Na 0 0 0 d", "Cl1 Cl 0.5 0.5 0.5 d", "Cg1 ? 0.1 0.2 0.3 dum"]
    found, notes = crystal(build(sites, columns=columns))
    assert len(found) == 8 and "1 dummy sites are left out" in notes[0]


def test_positions_that_are_cartesian():
    columns = ("label", "type_symbol", "Cartn_x", "Cartn_y", "Cartn_z")
    assert "give fractional positions" in str(refusal(build(columns=columns)))


def test_too_many_atoms_are_refused_before_they_are_made():
    sites = [f"Na{i} Na 0.{i:06d} 0 0" for i in range(1, 100_002)]
    assert refusal(build(sites, group="P 1")).reason == "too_many_atoms"
    assert refusal(build(sites[:9000])).reason == "too_many_atoms"


# --- Magnetic structures

MAGNETIC = """loop_
_space_group_symop_magn_operation.id
_space_group_symop_magn_operation.xyz
1 x,y,z,+1
2 -x,-y,-z,+1
loop_
_space_group_symop_magn_centering.id
_space_group_symop_magn_centering.xyz
1 x,y,z,+1
2 x+1/2,y+1/2,z+1/2,-1"""


def test_a_magnetic_structure_is_read_without_its_moments():
    sites = ("Mn1 Mn 0 0 0", "O1 O 0.1 0.2 0.3")
    found, notes = crystal(build(sites, group=None, extra=MAGNETIC))
    assert found.composition == Composition("Mn2O4") and not notes
    old = MAGNETIC.replace("magn_operation.", "magn_operation_").replace("ering.", "ering_")
    assert crystal(build(sites, group=None, extra=old))[0] == found


# --- Several blocks


def salt(name: str, length: float = 5.64) -> str:
    return build(cell=(length, length, length, 90, 90, 90), name=name)


def test_blocks_are_crystals_whatever_their_names(tmp_path):
    path = tmp_path / "salts.cif"
    path.write_text(salt("a") + salt("a", 5.7) + "data_b\n_journal_year 1985\n" + salt("c", 5.8))
    found = read(path, reduce=False)
    assert [one.id for one in found] == ["salts-a", "salts-a-2", "salts-c"]
    assert [one.structure.lattice.a for one in found] == pytest.approx([5.64, 5.7, 5.8])
    assert len(read(path, limit=2)) == 2


def test_a_bad_block_stops_or_is_counted(tmp_path, caplog):
    path = tmp_path / "two.cif"
    path.write_text(salt("a") + salt("b").replace("Cl1 Cl 0.5", "Cl1 Cl oops"))
    with pytest.raises(
        InvalidCrystal, match="file two.cif .*block b: site Cl1: the position 'oops'"
    ):
        read(path)
    found = read(path, skip_invalid=True)
    assert [one.id for one in found] == ["two-a"] and found.skipped == {"unreadable": 1}
    assert "left out: unreadable 1" in caplog.text


def test_a_file_without_sites():
    error = refusal("data_a\n_cell_length_a 4\ndata_b\n")
    assert "no atom sites in the data blocks (a, b)" in str(error)


def test_a_table_holds_one_crystal_in_a_row(tmp_path):
    path = tmp_path / "t.csv"
    pd.DataFrame({"cif": [salt("a") + salt("b", 5.7)]}).to_csv(path)
    with pytest.raises(InvalidCrystal, match="column 'cif': the CIF holds 2 structures"):
        read(path)


@pytest.mark.parametrize("swap", [False, True])
def test_one_crystal_in_two_settings_is_given_once(swap):
    texts = [
        build(BI2TE3_HEXAGONAL, cell=BI2TE3_CELL, group="R -3 m :H", name="conventional"),
        build(BI2TE3, cell=RHOMBOHEDRAL, group="R -3 m :R", name="primitive"),
    ]
    (found,) = parse_cif("".join(reversed(texts) if swap else texts))
    assert found.block == ("primitive" if swap else "conventional")
    assert "is the same crystal in another setting and is left out" in found.notes[-1]


def test_equal_blocks_in_one_cell_are_several_crystals():
    assert len(parse_cif(salt("a") + salt("b"))) == 2
    assert len(parse_cif(salt("a") + salt("b", 5.65))) == 2


# --- Messages


def test_warnings_name_file_and_block_and_come_back_from_the_cache(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("flowllm.crystals.io._WORTH_CACHING", 1)
    path = tmp_path / "salt.cif"
    path.write_text(build(group=None, extra="_space_group_IT_number 225"))
    for _ in range(2):
        caplog.clear()
        read(path)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"{path}: file salt.cif: block x: only the number" in record.getMessage()
    path.write_text("".join(build(group=None, name=f"x{i}") for i in range(15)))
    caplog.clear()
    read(path)
    assert len(caplog.records) == 11 and "and 5 more warnings" in caplog.text


def test_the_command_refuses_in_one_line(tmp_path):
    path = tmp_path / "raw.cif"
    path.write_text(build(operations=["x,y,z"]))
    result = run_command("data", path, tmp_path / "out.csv")
    assert result.exit_code == 2 and not (tmp_path / "out.csv").exists()
    assert result.stderr.count("\n") == 1 and "is group 225" in result.stderr


# --- Real crystals, written in many ways


def without_operations(text: str) -> str:
    return re.sub(r"loop_\n _symmetry_equiv_pos_site_id\n.*\n(?:  \d+  '.*'\n)+", "", text)


def rounded(text: str, decimals: int) -> str:
    head, mark, sites = text.partition(" _atom_site_occupancy\n")
    return head + mark + re.sub(r"\d\.\d{8}", lambda m: f"{float(m[0]):.{decimals}f}", sites)


def test_mp20_comes_back_from_symmetric_cifs_of_every_kind():
    matcher = StructureMatcher(0.05, 0.1, 2, scale=False)
    for text in pd.read_parquet(MP20_SAMPLE).cif[::3]:
        structure, _ = crystal(text)
        with ignore_missing_electronegativity():
            written = str(CifWriter(structure, symprec=0.01))
        number_only = re.sub("_symmetry_space_group_name_H-M.*\n", "", without_operations(written))
        for variant in (written, without_operations(written), number_only, rounded(written, 3)):
            found, _ = crystal(variant)
            assert found.volume / len(found) == pytest.approx(
                structure.volume / len(structure), 2e-3
            )
            assert matcher.fit(found, structure)


# --- Cases from users


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("02-*/diamond_origin1.cif", "Si8"),
        ("02-*/hall_only.cif", "Na4Cl4"),
        ("02-*/old_symbol.cif", "Na4Cl4"),
        ("02-*/rhombohedral_axes.cif", "Bi2Te3"),
        ("03-*/zno.cif", "Zn2O2"),
    ],
)
def test_cases_that_are_read(name, formula):
    assert crystal(case(name))[0].composition == Composition(formula)


def test_cases_that_are_refused():
    good, bad = parse_cif(case("11-*/two.cif"))
    assert make_structure(*good.source).composition == Composition("Na4Cl4")
    assert "block b: site Po1: the position 'oops' is no number" in str(bad.source)
    assert "'Fm-3m' is group 225" in str(refusal(case("15-*/raw.cif")))
