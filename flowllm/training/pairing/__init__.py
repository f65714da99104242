"""Pairs of a base crystal and its target, the training data of the refiner.

- `run`: `pair`, from a prior (`prior_pairs`), from templates (`template_pairs`) or from crystals of
  a file (`file_pairs`);
- `config`: its options; `records`: its shards; `table`: the parquet file of pairs.
"""
