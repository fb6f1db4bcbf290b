"""Dropout and DropConnect with a fixed rate, as variational posteriors.

    w = theta * m / (1 - rate),  m ~ Bernoulli(1 - rate)

over a layer's inputs (`mc_dropout`) or over single weights (`dropconnect`). The latents are the masks: their prior is the
same Bernoulli distribution as q, the weights theta are parameters, and the KL is exactly zero. The loss is therefore the
negative ELBO of that model; it is no bound for a model with a prior on the weights, whose KL to a spike at zero is
infinite, and so counts as a surrogate there. With `l2=True` the normal prior enters as Gal & Ghahramani (2016) have it,
through a penalty that stands for the KL of a smoothed q.
Lecture: "Dropout as a Bayesian Procedure" (the KL term "missing due to the model choice").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.target.program import BoundData
from .masked_weights import DroppedInputs, MaskedWeights
from .weights import WeightGuide


class McDropout(WeightGuide):
    """Whole inputs of a layer are dropped; `estimator="local"` drops other ones for each example, as dropout layers do.

    Args:
        rate: probability that an input of a layer is dropped (`dropconnect`: a weight).
        input_rate: the same for the network's first layer, whose inputs are the data, where it is Bayesian.
        l2: adds sum theta^2 / (2 (1 - rate) scale^2), Gal & Ghahramani's stand-in for the KL to a normal prior.
    """

    family = "mc_dropout"
    objective = "surrogate"
    surrogate = "likelihood"

    def __init__(
        self,
        model: Callable[..., Any],
        data: BoundData,
        *,
        rate: float = 0.2,
        input_rate: float = 0.0,
        l2: bool = False,
    ) -> None:
        super().__init__(model, data)
        for name, value in {"rate": rate, "input_rate": input_rate}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} is the probability of a zero, from 0 to below 1, got {value}")
        first = _first_weights(model, self.weights)
        self.rates = {name: input_rate if name == first else rate for name in self.weights}
        self.l2 = l2
        if l2:
            self.require_prior("normal", "with l2=True takes the penalty from a normal prior")

    @property
    def loss_name(self) -> str:
        """What the loss is."""
        if self.l2:
            return "-E log p(y | theta m) + L2 penalty, Gal & Ghahramani's surrogate"
        return "-E log p(y | theta m), the negative ELBO of the model whose latents are the masks"

    def weight_distribution(self, name: str, theta: Tensor) -> Any:
        """theta with columns dropped."""
        return DroppedInputs(theta, self.rates[name], groups=self.groups[name])

    def penalty(self) -> Tensor:
        """What is added to the expected negative log likelihood, in nats."""
        total = self.theta.new_zeros(())
        if not self.l2:
            return total
        for name, theta in self.points().items():
            scale = getattr(self.prior_of(name), "scale", None)
            if scale is None or name not in self.rates:  # a bias has no mask: its own log prior, up to a constant
                total = total - self.space.sites[name].distribution.log_prob(self.space.transforms[name](theta)).sum()
                continue
            total = total + (theta / scale).square().sum() / (2 * (1 - self.rates[name]))
        return total


class DropConnect(McDropout):
    """Single weights are dropped, one mask for the whole batch (Wan et al. 2013)."""

    family = "dropconnect"

    def weight_distribution(self, name: str, theta: Tensor) -> Any:
        """theta with elements dropped."""
        return MaskedWeights(theta, self.rates[name], tuple(theta.shape))


class ConcreteDropout(McDropout):
    """Dropout whose rates are learned, one a layer, through the concrete relaxation (Gal, Hron, Kendall 2017).

    The penalty is sum theta^2 / (2 (1 - p) scale^2) - C H(p) for each layer with C inputs, H(p) the entropy of the rate
    in nats: it pulls p to a half where weights are cheap, and to zero where data are many.

    Args:
        rate: where the learned rates begin.
        temperature: of the relaxation while training; draws of the fitted posterior are relaxed by the same.
    """

    family = "concrete_dropout"

    def __init__(self, model: Callable[..., Any], data: BoundData, *, rate: float = 0.1, temperature: float = 0.1) -> None:
        super().__init__(model, data, rate=rate, input_rate=rate, l2=True)
        if not rate > 0:
            raise ValueError(f"rate is where learned rates begin and must lie between 0 and 1, got {rate}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature
        start = torch.logit(torch.full((len(self.weights),), float(rate), dtype=self.theta.dtype))
        self.logit_rate = torch.nn.Parameter(start)

    @property
    def loss_name(self) -> str:
        """What the loss is."""
        return "-E log p(y | theta m) + L2 penalty - entropy of the rates, Gal, Hron & Kendall's surrogate"

    def learned_rates(self) -> dict[str, float]:
        """The rate of each layer."""
        return dict(zip(self.weights, torch.sigmoid(self.logit_rate.detach()).tolist(), strict=True))

    def weight_distribution(self, name: str, theta: Tensor) -> Any:
        """theta with columns dropped at a learned rate."""
        rate = torch.sigmoid(self.logit_rate[self.weights.index(name)])
        return DroppedInputs(theta, rate, self.temperature, self.groups[name])

    def penalty(self) -> Tensor:
        """Gal, Hron & Kendall 2017, equations 3 and 4."""
        total = self.theta.new_zeros(())
        rates = torch.sigmoid(self.logit_rate)
        points = self.points()
        for rate, name in zip(rates, self.weights, strict=True):
            theta = points[name]
            entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
            inputs = self.groups[name] * theta.shape[1]
            total = total + (theta / self.prior_of(name).scale).square().sum() / (2 * (1 - rate)) - inputs * entropy
        for name, theta in points.items():
            if name not in self.weights:
                total = total - self.space.sites[name].distribution.log_prob(self.space.transforms[name](theta)).sum()
        return total


def _first_weights(model: Any, weights: Sequence[str]) -> str:
    """The site that would hold the weights of the network's first layer; of a model that is none of the zoo's, the first site."""
    net = model.net if hasattr(model, "bayesian_layers") else None
    layers = net.named_modules() if isinstance(net, nn.Module) else ()
    first = next((name for name, layer in layers if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    return weights[0] if first is None else f"{first}.weight".removeprefix(".")
