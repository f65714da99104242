"""Training of the prior and of the refiner.

- `prior`, `tuning`, `refiner`: `train_prior`, `tune_prior` and `train_refiner`;
- `recipes`, `config`: YAML recipes and their settings;
- `engine`, `epochs`, `ema`, `fsdp`, `validation`, `progress`: one training loop for both stages;
- `folder`, `checkpoints`: run folders of trainings that resume bit for bit;
- `preference`: judged samples and pairs of texts, the training data of a tuning;
- `pairing`: pairs of a base crystal and its target, the training data of the refiner.
"""
