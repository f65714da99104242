"""Templates: known crystals whose elements are replaced.

- `proposals`: structures for a composition; `averaging`: the mean over templates of one gene;
- `library`: the known crystals, as compact records in one file; `prototypes`: their space groups
  and Wyckoff letters without elements;
- `checks`: whether the records of a library describe crystals;
- `ranking`: the distance of a template from a composition, and the volume of its cell;
- `volumes`: the volume that the templates suggest for a crystal.
"""
