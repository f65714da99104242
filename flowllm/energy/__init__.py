"""Energies: potentials, relaxation, formation energies and convex hulls.

- `calculators`: potentials by name; `potential_check`: the test that each of them has to pass;
- `single_points`: energies of a batch; `chgnet_potential`, `sevennet_potential`: potentials that
  evaluate batches;
- `minimization`: one crystal; `batched`: several at once; `relaxation`: many in a run folder,
  isolated from the process that writes it;
- `formation`, `hull`: formation energies and energies above the hull;
- `vasp`: input files for density functional theory.
"""
