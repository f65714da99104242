"""Crystals: reading and writing files, cells, formulas."""
