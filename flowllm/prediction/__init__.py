"""Prediction: from a formula to structures.

- `templates`: proposals from known crystals with other elements;
- `library`: the known crystals, as compact records in one file; `prototypes`: their space groups
  and Wyckoff letters without elements;
- `ranking`: the distance of a template from a composition, and the volume of its cell.
- `config`: the request; `formulas`: what is asked for; `resources`: what is read and loaded;
- `candidates`: structures from templates and from the prior; `minima`: their relaxation; `scores`:
  energy and likelihood as one score;
- `prediction`: the ranked structures of a formula; `names`: names of prototypes;
- `run`: many formulas as a run folder; `summary` and `report`: what it shows.
"""
