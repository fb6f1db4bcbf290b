"""How far a fit is from the posterior: importance weights, references, leave-one-out, one report."""
