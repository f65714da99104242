"""Ask which elements could take the place of one, and make crystals with them."""

from pymatgen.core import Lattice, Structure

from flowllm import write
from flowllm.generation.infilling import infill
from flowllm.generation.mutation import mutate

PEROVSKITE = Structure.from_spacegroup(
    "Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
)


def main(n: int = 4) -> None:
    write([PEROVSKITE], "perovskite.cif", overwrite=True)
    (result,) = infill("perovskite.cif", "Sr")
    for symbol, probability in list(result.probabilities.items())[:5]:
        print(f"{symbol:2}  {probability:.3f}")
    outcome = mutate("perovskite.cif", n, out="mutants", seed=0)
    print(sorted({crystal.structure.composition.reduced_formula for crystal in outcome.crystals}))


if __name__ == "__main__":
    main()
