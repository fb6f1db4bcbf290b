"""The shared SVI runner and all that is asked of its fits."""

if __name__ != "bayeszoo.inference":
    raise ImportError(
        "this folder is the package bayeszoo.inference: write 'import bayeszoo.inference', not 'import inference'"
    )

from .diagnosis.reference import Reference, reference
from .engine.compiled import NotCompiledWarning
from .engine.training import NonFiniteError, Progress
from .estimators.gradient_table import GradientVariance
from .estimators.gradient_variance import gradient_variance
from .prediction.prediction import Prediction
from .prediction.scores import auroc
from .result import Fit
from .run import Run
from .runner import fit

__all__ = [
    "Fit",
    "GradientVariance",
    "NonFiniteError",
    "NotCompiledWarning",
    "Prediction",
    "Progress",
    "Reference",
    "Run",
    "auroc",
    "fit",
    "gradient_variance",
    "reference",
]
