"""Energies: potentials, relaxation, formation energies and convex hulls."""
