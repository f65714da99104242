"""Evaluation of generated crystals: files in, metrics, tables and a report out."""
