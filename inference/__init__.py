"""The shared SVI runner and all that is asked of its fits."""

if __name__ != "bayeszoo.inference":
    raise ImportError(
        "this folder is the package bayeszoo.inference: write 'import bayeszoo.inference', not 'import inference'"
    )

from .compiled import NotCompiledWarning
from .gradient_table import GradientVariance
from .gradient_variance import gradient_variance
from .prediction import Prediction
from .reference import Reference, reference
from .result import Fit, Run
from .runner import fit
from .training import NonFiniteError, Progress

__all__ = [
    "Fit",
    "GradientVariance",
    "NonFiniteError",
    "NotCompiledWarning",
    "Prediction",
    "Progress",
    "Reference",
    "Run",
    "fit",
    "gradient_variance",
    "reference",
]
