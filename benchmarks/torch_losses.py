"""The negative ELBOs as an expert would write them by hand in torch: no Pyro, no distribution objects.

All latents of a model lie in one flat vector u of unconstrained coordinates, u = loc + softplus(raw) eps; the entropy of q is
written in closed form, and so is the VAE's KL. Constants are kept, so the losses are those of Pyro in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Array
from .pyro_models import Encoder, make_decoder

Batch = dict[str, Tensor]
#: (u, batch, all rows / rows of the batch) -> -log p(observed, u), Jacobians of the constraints included, in nats.
NegativeLogJoint = Callable[[Tensor, Batch, float], Tensor]

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def standard_normal(u: Tensor) -> Tensor:
    """-log N(u | 0, I)."""
    return 0.5 * (u @ u) + len(u) * HALF_LOG_2PI


def coin(u: Tensor, batch: Batch, scale: float) -> Tensor:
    """The Jacobian of the logistic function is pi (1 - pi); the uniform prior is one."""
    logits = u.expand(len(batch["x"]))
    jacobian = F.softplus(u[0]) + F.softplus(-u[0])
    return jacobian + scale * F.binary_cross_entropy_with_logits(logits, batch["x"], reduction="sum")


def linear(u: Tensor, batch: Batch, scale: float) -> Tensor:
    residual = (batch["y"] - batch["x"] @ u) / 0.5
    rows = 0.5 * (residual @ residual) + len(residual) * (HALF_LOG_2PI + math.log(0.5))
    return standard_normal(u) + scale * rows


def make_coins(arrays: dict[str, Array]) -> NegativeLogJoint:
    total, heads = (torch.from_numpy(arrays[k]).double() for k in ("total", "heads"))
    choices = float((torch.lgamma(total + 1) - torch.lgamma(heads + 1) - torch.lgamma(total - heads + 1)).sum())

    def coins(u: Tensor, batch: Batch, scale: float) -> Tensor:
        mu, log_tau, each = u[0], u[1], u[2:]
        tau = log_tau.exp()
        z = (each - mu) / tau
        prior = 0.5 * (mu / 1.5) ** 2 + math.log(1.5) + 0.5 * tau**2 - log_tau - math.log(2) + 2 * HALF_LOG_2PI
        people = 0.5 * (z @ z) + len(z) * (HALF_LOG_2PI + log_tau)
        binomial = (batch["total"] * F.softplus(each) - batch["heads"] * each).sum() - choices
        return prior + scale * (people + binomial)

    return coins


def make_schools(arrays: dict[str, Array]) -> NegativeLogJoint:
    log_sigma = float(torch.from_numpy(arrays["sigma"]).log().sum())

    def schools(u: Tensor, batch: Batch, scale: float) -> Tensor:
        mu, log_tau, eta = u[0], u[1], u[2:]
        tau = log_tau.exp()
        prior = 0.5 * (mu / 5) ** 2 + math.log(5) + HALF_LOG_2PI
        prior = prior + torch.log1p((tau / 5) ** 2) + math.log(math.pi * 5 / 2) - log_tau
        z = (batch["y"] - mu - tau * eta) / batch["sigma"]
        rows = 0.5 * (eta @ eta + z @ z) + 2 * len(z) * HALF_LOG_2PI + log_sigma
        return prior + scale * rows

    return schools


def logistic(u: Tensor, batch: Batch, scale: float) -> Tensor:
    logits = batch["x"] @ u[:-1] + u[-1]
    return standard_normal(u) + scale * F.binary_cross_entropy_with_logits(logits, batch["y"], reduction="sum")


#: Shapes of the BNN's weights and biases, in the model's order.
BNN_SHAPES = ((64, 50), (50,), (50, 50), (50,), (50, 10), (10,))


def bnn(u: Tensor, batch: Batch, scale: float) -> Tensor:
    parts = u.split([math.prod(shape) for shape in BNN_SHAPES])
    w1, b1, w2, b2, w3, b3 = (part.view(shape) for part, shape in zip(parts, BNN_SHAPES, strict=True))
    h = torch.tanh(torch.addmm(b1, batch["x"], w1))
    h = torch.tanh(torch.addmm(b2, h, w2))
    return standard_normal(u) + scale * F.cross_entropy(torch.addmm(b3, h, w3), batch["y"], reduction="sum")


class MeanField(nn.Module):
    """Loss of a factorised normal over u, (D,), from zero and sd 0.1, as the autoguides start."""

    def __init__(self, size: int, joint: NegativeLogJoint) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(size))
        self.raw = nn.Parameter(torch.full((size,), math.log(math.expm1(0.1))))
        self.joint = joint

    def forward(self, batch: Batch, scale: float = 1.0) -> Tensor:
        sd = F.softplus(self.raw)
        u = torch.addcmul(self.loc, sd, torch.randn_like(sd))
        entropy = sd.log().sum() + len(sd) * (HALF_LOG_2PI + 0.5)
        return self.joint(u, batch, scale) - entropy


class Vae(nn.Module):
    """Loss of the VAE, with the closed-form KL to the standard normal prior."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), make_decoder()

    def forward(self, batch: Batch, scale: float = 1.0) -> Tensor:
        x = batch["x"]
        h = torch.relu(self.encoder.hidden(x))
        loc, log_sd = self.encoder.loc(h), self.encoder.log_scale(h)
        sd = log_sd.exp()
        z = torch.addcmul(loc, sd, torch.randn_like(sd))
        rows = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (loc.square() + sd.square() - 1).sum() - log_sd.sum()
        return scale * (rows + kl)


def make(name: str, arrays: dict[str, Array]) -> nn.Module:
    """The loss of the model of that name as a module: call it with a batch and its scale."""
    match name:
        case "coin":
            return MeanField(1, coin)
        case "linear":
            return MeanField(arrays["x"].shape[1], linear)
        case "coins":
            return MeanField(2 + len(arrays["total"]), make_coins(arrays))
        case "schools":
            return MeanField(10, make_schools(arrays))
        case "logistic":
            return MeanField(arrays["x"].shape[1] + 1, logistic)
        case "bnn":
            return MeanField(sum(math.prod(shape) for shape in BNN_SHAPES), bnn)
        case "vae":
            return Vae()
    raise ValueError(f"no hand-written loss for '{name}'; add one to torch_losses")
