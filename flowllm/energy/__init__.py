"""Energies: potentials, relaxation, formation energies and convex hulls.

- `calculators`: potentials by name; `potential_check`: the test that each of them has to pass;
- `minimization`: one crystal; `relaxation`: many crystals in a run folder, each in isolation;
- `formation`, `hull`: formation energies and energies above the hull;
- `vasp`: input files for density functional theory.
"""
