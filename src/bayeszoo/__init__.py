"""Models of the lecture *Bayesian Deep Learning* in Pyro, with guides, one shared SVI runner, and ArviZ.

Importing bayeszoo sets Pyro's `module_local_params`: parameters live in modules, not in a global store.
"""

import pyro

# Set once, for good: as a context manager around single fits it would let later calls of a fitted guide read another fit's
# parameters.
pyro.settings.set(module_local_params=True)

from . import data, guides, inference, models  # noqa: E402
from .fitting import fit  # noqa: E402
from .saving import load  # noqa: E402

__version__ = "0.1.0"

__all__ = ["__version__", "data", "fit", "guides", "inference", "load", "models"]
