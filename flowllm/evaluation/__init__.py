"""Evaluation of generated crystals: sets of crystals in, metrics and a report out.

- `evaluate`: the public function and its checks; `config`: its options; `pipeline`: its steps;
- `sets`: generated, reference and training sets; `definitions`: variants of published metrics;
- `measurement`, `energies`, `features`: metrics of one set, relaxed crystals of a set, fingerprints
  and prototypes with their cache on disk;
- `results`, `remarks`, `report`, `leaderboards`: what is written.
"""
