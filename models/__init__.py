"""The lecture's models, one a file: a story, its priors, and exact answers where theory gives them."""

if __name__ != "bayeszoo.models":
    raise ImportError("this folder is the package bayeszoo.models: write 'import bayeszoo.models', not 'import models'")

from . import depth_priors, networks, pixels, weight_priors
from .adaptive_depth import AdaptiveDepthResNet
from .bayesian_nn import BayesianNN
from .coin_flip import CoinFlip
from .hierarchical_coin import HierarchicalCoin
from .linear_regression import BayesianLinearRegression
from .semi_supervised_vae import SemiSupervisedVAE
from .vae import VAE

__all__ = [
    "VAE",
    "AdaptiveDepthResNet",
    "BayesianLinearRegression",
    "BayesianNN",
    "CoinFlip",
    "HierarchicalCoin",
    "SemiSupervisedVAE",
    "depth_priors",
    "networks",
    "pixels",
    "weight_priors",
]
