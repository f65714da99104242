"""Meaning of each metric in one line, for the table of the report."""

from __future__ import annotations

_MEETS = "meets_"
_REQUESTED = {
    "spacegroup": "space group at 0.2 Å",
    "spacegroup_0.1": "space group at 0.1 Å",
}
_MEANINGS = {
    "structural_validity": "atoms at least 0.5 Å apart and a cell of at least 0.1 Å³",
    "compositional_validity": "charges can balance (SMACT), or an element or alloy",
    "valid": "both validities",
    "uniqueness": "crystals that equal no earlier one of the set",
    "novelty": "crystals that equal none of the training sets",
    "unique_novel": "unique and novel",
    "valid_unique_novel": "valid, unique and novel, of all requested",
    "gene_uniqueness": "crystals whose space group, elements and Wyckoff letters are new in the "
    "set",
    "gene_novelty": "crystals whose space group, elements and Wyckoff letters no training set has",
    "gene_unique_novel": "unique and novel by space group, elements and Wyckoff letters",
    "symmetry_found": "crystals in which a space group is found",
    "p1": "crystals without symmetry, space group P1",
    "p1_reference": "share of P1 in the reference",
    "free_parameters": "mean number of free parameters of cell and coordinates",
    "free_parameters_reference": "the same in the reference",
    "free_parameters_distance": "Wasserstein distance of numbers of free parameters to the "
    "reference",
    "spacegroup_js_distance": "Jensen–Shannon distance of space groups to the reference, 0 to 1",
    "spacegroup_chi_square": "chi-square statistic of space groups against the reference; falls "
    "with the number of crystals",
    "structural_diversity": "mean distance of structure features within the set",
    "compositional_diversity": "mean distance of composition features within the set",
    "coverage_recall": "reference crystals near a generated one",
    "coverage_precision": "generated crystals near a reference one",
    "amsd_recall": "mean structure distance of a reference crystal to the nearest generated",
    "amsd_precision": "mean structure distance of a generated crystal to the nearest reference",
    "amcd_recall": "mean composition distance of a reference crystal to the nearest generated",
    "amcd_precision": "mean composition distance of a generated crystal to the nearest reference",
    "density_distance": "Wasserstein distance of densities to the reference, g/cm³",
    "num_elements_distance": "Wasserstein distance of numbers of elements to the reference",
    "volume_per_atom_distance": "Wasserstein distance of volumes per atom to the reference, Å³",
    "structural_feature_novelty": "far from the training set in structure features",
    "compositional_feature_novelty": "far from the training set in composition features",
    "feature_novelty": "far from the training set in structure or composition features",
    "stable_0": "below the hull, of all",
    "stable_0.03": "less than 0.03 eV/atom above the hull, of all",
    "stable_0.1": "less than 0.1 eV/atom above the hull, of all",
    "sun": "stable, unique and novel, of all",
    "metastable_sun": "less than 0.1 eV/atom above the hull, unique and novel, of all",
    "match_rate": "targets that a sample made for them matches",
    "rmse": "mean RMSD of the matched targets, over (V/N)^(1/3)",
    "metre": "targets that any sample matches",
    "crmse": "mean RMSD of all targets, 0.5 for those that none matches",
    "relaxed_match_rate": "crystals that match their relaxed self, of all",
    "relaxed_rmsd": "mean RMSD of the matched to their relaxed self, over (V/N)^(1/3)",
    "median_e_above_hull": "median energy above the hull of the relaxed, eV/atom",
    "energy_drop": "mean energy that relaxation takes away, eV/atom",
    "relaxation_steps": "mean steps of the relaxation",
} | {
    f"{name}_reference": "the distance of as many crystals drawn from the reference"
    for name in ("spacegroup_js_distance", "spacegroup_chi_square", "free_parameters_distance")
}


def meaning(metric: str) -> str:
    """Return the meaning of a metric.

    Args:
        metric: name of the metric; `[NAME]` after it names a set or a number of atoms.

    Returns:
        One line; empty for an unknown metric.
    """
    name, _, which = metric.partition("[")
    which = which.removesuffix("]")
    if name.startswith(_MEETS):
        condition = name.removeprefix(_MEETS)
        line = f"crystals with the requested {_REQUESTED.get(condition, condition)}"
        return f"{line}, of {which}" if which else line
    line = _MEANINGS.get(name, "")
    return f"{line}; against {which}" if line and which else line
