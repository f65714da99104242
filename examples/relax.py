"""Relax generated crystals with an ASE calculator, here EMT; in earnest a learned potential."""

from flowllm import relax, run_sampling


def main(n: int = 4, potential: str = "ase.calculators.emt:EMT") -> None:
    generated = run_sampling(n, out="alloys", composition="Cu3Au1", seed=0)
    relaxed = relax(generated.folder, potential=potential, out="alloys-relaxed")
    for crystal in relaxed.crystals:
        energy = crystal.properties["energy_per_atom"]
        print(f"{crystal.id}  {energy:.3f} eV/atom  {crystal.structure.volume:.1f} Angstrom^3")
    print("failed:", dict(relaxed.failures))


if __name__ == "__main__":
    main()
