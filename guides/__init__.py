"""Families of variational posteriors, one a file, each a builder `(model, data, **options) -> guide`.

`bayeszoo.fit(..., guide="mean_field")` finds them by name; `available(model, data)` lists those that fit a model.
"""

if __name__ != "bayeszoo.guides":
    raise ImportError("this folder is the package bayeszoo.guides: write 'import bayeszoo.guides', not 'import guides'")

from .amortized import Amortized, AmortizedFlow, AmortizedFullRank, PerDatum
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
from .semi_supervised import SemiSupervised
from .structured import Structured
from .variational_dropout import GaussianDropout, SparseVariationalDropout

__all__ = [
    "FAMILIES",
    "Amortized",
    "AmortizedFlow",
    "AmortizedFullRank",
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
    "PerDatum",
    "SemiSupervised",
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
