"""How fast the fits are, beside plain Pyro, hand-written torch and NumPyro: `python -m benchmarks`."""
