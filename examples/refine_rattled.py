"""Disturb a crystal of ASE, refine it, and compare both with the original."""

from ase.spacegroup import crystal
from pymatgen.core.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor

from flowllm import FlowLLM


def main(size: float = 0.15) -> None:
    rutile = crystal(
        ["Ti", "O"],
        [(0, 0, 0), (0.305, 0.305, 0)],
        spacegroup=136,
        cellpar=[4.6, 4.6, 2.96] + [90] * 3,
    )
    rough = rutile.copy()
    rough.rattle(size, seed=1)
    # Rattling has destroyed the symmetry, so there is none to keep.
    (refined,) = FlowLLM.from_pretrained().refine([rough], symmetry="free", seed=0)
    if refined.structure is None:
        print("failed:", refined.failure)
        return
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    original = AseAtomsAdaptor.get_structure(rutile)
    for name, structure in (
        ("rattled", AseAtomsAdaptor.get_structure(rough)),
        ("refined", refined.structure),
    ):
        distance = matcher.get_rms_dist(original, structure)
        print(name, "RMSD", "no match" if distance is None else f"{distance[0]:.3f}")


if __name__ == "__main__":
    main()
