"""The density that a guide approximates: a model's sites, coordinates, log density, and its mode."""
