"""Training of the prior and of the refiner."""
