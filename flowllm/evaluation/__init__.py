"""Evaluation of generated crystals."""
