"""Bayesian neural network: any torch network with a prior on the weights of its linear and convolutional layers.

    w   ~ p(w)                                    one site for each weight and bias, named as the network names it
    f_n = net_w(x_n)
    y_n ~ Categorical(softmax f_n), Bernoulli(sigmoid f_n) or N(f_n, sigma^2)
    sigma ~ HalfNormal(noise_prior_scale)         gaussian, unless the noise is known: noise_scale

Lecture: "Bayesian Neural Networks". The lecture's objective writes the KL inside the sum over n; it counts once.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from . import settings
from .classes import check_labels, check_several
from .contract import BoundData, data_plate
from .latent_weights import LatentWeights, LayerFilter
from .weight_priors import WeightPrior

LIKELIHOODS = ("categorical", "gaussian", "bernoulli")


class BayesianNN(LatentWeights):
    """A network with uncertain weights.

    Args:
        net: any module from x `(N, ...)` to `(N, K)` class logits, `(N,)` or `(N, D)` means, or `(N,)` log odds; it is copied.
        likelihood: `categorical`, `gaussian` or `bernoulli`.
        prior: `normal`, `laplace`, `scale_mixture`, `log_uniform`, or an object of `bz.models.weight_priors`.
        bayesian: which layers have latent weights: `all`, `last`, names of layers, or a filter `(name, layer) -> bool`. The
            weights of the others are parameters.
        biases: whether the biases of these layers are latent, too, or parameters; None makes them latent, except under the
            log-uniform prior, which would prune them (Molchanov et al. 2017 leave them out as well).
        freeze: whether those parameters keep their values; otherwise they are trained with the guide.
        init: where fits begin: at the network's own weights (`net`; further restarts draw new ones as its layers do) or at
            draws from the `prior`.
        noise_scale: the known sigma of a gaussian likelihood; None infers it.
        noise_prior_scale: scale of the half-normal prior of an unknown sigma.
    """

    noise_scale: Tensor | None
    noise_prior_scale: Tensor

    #: Some observations tell what the model is made of: see `bayeszoo.inference.target.program.some_rows`.
    by_rows = True

    def __init__(
        self,
        net: nn.Module,
        likelihood: str = "categorical",
        prior: str | WeightPrior = "normal",
        bayesian: str | Sequence[str] | LayerFilter = "all",
        biases: bool | None = None,
        freeze: bool = False,
        init: str = "net",
        noise_scale: float | Tensor | None = None,
        noise_prior_scale: float | Tensor = 1.0,
    ) -> None:
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"unknown likelihood '{likelihood}'; choose one of {', '.join(LIKELIHOODS)}")
        super().__init__(net, prior, bayesian, biases, freeze, init)
        if not self.sites:
            raise ValueError("bayesian chooses no layer, so there is nothing to infer; choose 'all', 'last' or a layer's name")
        self.likelihood = likelihood
        known = None if noise_scale is None else settings.positive("noise_scale", noise_scale)
        if known is not None and likelihood != "gaussian":
            raise ValueError(f"noise_scale belongs to likelihood='gaussian', and this one is '{likelihood}'; leave it out")
        self.register_buffer("noise_scale", known)
        self.register_buffer("noise_prior_scale", settings.positive("noise_prior_scale", noise_prior_scale))

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None
    ) -> Tensor:
        """Score the targets y, or simulate them where y is None.

        Args:
            x: `(N, ...)` inputs.
            y: `(N,)` classes 0 .. K - 1, `(N,)` zeros and ones, or `(N,)` or `(N, D)` numbers.
            num_data: observations in the whole data set.
            index: `(N,)` the rows of x in it, for batches.

        Returns:
            Targets, observed or simulated.
        """
        weights = self.draw_weights(x)
        sigma = self._noise(x)
        with data_plate(len(x), num_data, index):
            out = self.outputs(weights, x)
            if y is not None and self.likelihood != "categorical":
                y = y.to(out.dtype)  # zeros and ones may come as whole numbers
            return pyro.sample("y", self._likelihood(out, sigma), obs=y)

    def outputs(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return net_w(x): logits `(N, K)`, means `(N,)` or `(N, D)`, or log odds `(N,)`.

        Args:
            weights: site -> one draw of it; `torch.vmap` over this function takes many.
        """
        out = self.run(weights, x)
        if self.likelihood != "categorical" and out.dim() == 2 and out.shape[1] == 1:
            return out.squeeze(-1)
        return out

    def _noise(self, like: Tensor) -> Tensor | None:
        if self.likelihood != "gaussian":
            return None
        if self.noise_scale is not None:
            return self.noise_scale.to(like)
        sigma: Tensor = pyro.sample("sigma", dist.HalfNormal(self.noise_prior_scale.to(like)))
        return sigma

    def _likelihood(self, out: Tensor, sigma: Tensor | None) -> dist.TorchDistribution:
        if self.likelihood == "categorical":
            return dist.Categorical(logits=out)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=out).to_event(out.dim() - 1)
        assert sigma is not None
        normal = dist.Normal(out, sigma)
        return normal.to_event(out.dim() - 1) if out.dim() > 1 else normal

    def initial_values(self, restart: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
        """Return where guides begin.

        Args:
            restart: the first begins at the network's own weights (with init="net"), the others at new ones.

        Returns:
            site -> its value and, in unconstrained coordinates, a standard deviation a tenth of what keeps the variance of
            the layer's outputs.
        """
        values = super().initial_values(restart)
        if self.likelihood == "gaussian" and self.noise_scale is None:
            sigma = 0.5 * self.noise_prior_scale.to(next(iter(values.values()))[0])
            values["sigma"] = sigma, torch.full_like(sigma, 0.1)
        return values

    def check(self, data: BoundData) -> None:
        """Raise ValueError where the data do not fit: another shape of x, labels that are no classes, a single class."""
        self.check_new(data)
        y = data.bind(self).get("y")
        if y is not None and self.likelihood != "gaussian" and y.dim() == 1:
            check_several(y)

    def check_new(self, data: BoundData) -> None:
        """Raise ValueError where data that the network is asked about do not fit; all may be of one class."""
        bound = data.bind(self)
        x, y = bound["x"], bound.get("y")
        out = self._probe(x)
        if y is None:
            return
        _check_target(self.likelihood, out, y)

    def _probe(self, x: Tensor) -> Tensor:
        """The outputs for two rows with the weights that a fit begins at."""
        out = self.probe(x)
        if not isinstance(out, Tensor) or out.dim() not in (1, 2) or len(out) != len(x[:2]):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the network returns {shape} for {len(x[:2])} inputs; it must return (N, K) or (N,) numbers")
        out = out.squeeze(-1) if self.likelihood != "categorical" and out.dim() == 2 and out.shape[1] == 1 else out
        return out


def _check_target(likelihood: str, out: Tensor, y: Tensor) -> None:
    if likelihood == "categorical":
        if out.dim() != 2 or out.shape[1] < 2:
            raise ValueError(
                f"likelihood='categorical' needs a network with at least two outputs, and this one returns {_shape(out)}; "
                "use 'bernoulli' for yes or no, 'gaussian' for numbers"
            )
        check_labels(y, out.shape[1])
        return
    if out.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"the network returns {_shape(out)} and the targets have the shape {_shape(y)}; give a network with as many outputs as "
            "a target has numbers"
        )
    if likelihood == "bernoulli" and not bool(((y == 0) | (y == 1)).all()):
        raise ValueError("likelihood='bernoulli' needs targets that are 0 or 1; use 'categorical' or 'gaussian'")


def _shape(tensor: Tensor) -> str:
    return f"(N{''.join(f', {size}' for size in tensor.shape[1:])})" if tensor.dim() > 1 else "(N,)"
