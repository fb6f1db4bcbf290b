"""Networks without the weights that a fit found to be noise."""
