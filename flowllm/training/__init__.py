"""Training of the prior and of the refiner.

- `prior`, `refiner`: `train_prior` and `train_refiner`;
- `recipes`, `config`: YAML recipes and their settings;
- `engine`, `epochs`, `ema`, `fsdp`, `validation`, `progress`: one training loop for both stages;
- `folder`, `checkpoints`: run folders of trainings that resume bit for bit;
- `pairing`: pairs of a base crystal and its target, the training data of the refiner.
"""
