"""Families of variational posteriors, one a file, each a builder `(model, data, **options) -> guide`.

`bayeszoo.fit(..., guide="mean_field")` finds them by name; `available(model, data)` lists those that fit a model.
"""

if __name__ != "bayeszoo.guides":
    raise ImportError("this folder is the package bayeszoo.guides: write 'import bayeszoo.guides', not 'import guides'")

from .beta import BetaGuide
from .dropout import ConcreteDropout, DropConnect, McDropout
from .ensemble import Ensemble
from .exact import Exact
from .flow import InverseAutoregressive, SplineFlow
from .full_rank import FullRank, Laplace
from .low_rank import LowRank
from .mean_field import MeanField
from .mixed import in_words
from .point import Map, Mle
from .registry import FAMILIES, Family, available, build, checked_name, fits, get
from .structured import Structured
from .variational_dropout import GaussianDropout, SparseVariationalDropout

__all__ = [
    "FAMILIES",
    "BetaGuide",
    "ConcreteDropout",
    "DropConnect",
    "Ensemble",
    "Exact",
    "Family",
    "FullRank",
    "GaussianDropout",
    "InverseAutoregressive",
    "Laplace",
    "LowRank",
    "Map",
    "McDropout",
    "MeanField",
    "Mle",
    "SparseVariationalDropout",
    "SplineFlow",
    "Structured",
    "available",
    "build",
    "checked_name",
    "fits",
    "get",
    "in_words",
]
