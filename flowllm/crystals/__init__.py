"""Crystals: files to pymatgen `Structure`s and back.

- `io`: `read` and `write` for every format; `readers`, `cif`, `writers` and `cache` are its parts;
- `rules`: what every crystal obeys, whatever file or object it comes from;
- `contents`, `containers`, `formats`: compressed files, encodings, folders and archives, names;
- `tables`, `documents`, `extxyz`, `poscar`, `databases`: one format each, and `columns`: the names
  of properties in public data sets;
- `run_folders`: the crystals of a finished run as an input;
- `crystal`, `cells`: a crystal with its id and properties; Niggli cells;
- `symmetry`: space group, Wyckoff orbits and prototype; `symmetrized_cif`: CIFs with them;
- `descriptions`: crystals as a text layout writes them, cached on disk;
- `formulas`: reduced formulas, and the formulas of known crystals.
"""
