"""Prediction: from a formula to structures.

- `config`: the request; `formulas`: what is asked for; `resources`: what is read and loaded;
- `candidates`: structures from templates and from the prior; `minima`: their relaxation; `scores`:
  energy and likelihood as one score;
- `prediction`: the ranked structures of a formula; `names`: names of prototypes;
- `run`: many formulas as a run folder; `outputs`: the files that it ends with; `summary` and
  `report`: what it shows.
"""
