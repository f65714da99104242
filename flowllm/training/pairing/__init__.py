"""Pairs of a base crystal and its target: the training data of the refiner."""
