"""Crystals: files to `Structure`s and back, cells, formulas."""
