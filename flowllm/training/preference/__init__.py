"""Preference tuning of the prior: which samples are better, and how far the model has moved.

- `judgement`: samples of runs, judged by an evaluation and sorted into classes;
- `pairs`: pairs of texts of one prompt, the first of a better class, and their table;
- `progress`: margins, accuracy and the divergence from the start while the prior is tuned.
"""
