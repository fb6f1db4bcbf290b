"""The guide of the semi-supervised autoencoder: a classifier, and a style given picture and class.

    q(c, z | x) = q(c | x) q(z | x, c),     c summed over where the label is unknown, fixed where it is known

Under the ELBO alone a known label never reaches the classifier. So its log probability of the known labels is added to what is
maximised, `alpha` times for each labelled picture (Kingma et al. 2014, eq. 9); losses are reported without it. By default it counts as
if every picture had a label; the paper's tenth of that left digits with three labels a class at 63 %, instead of 85 %.
Lecture: "Bayesian Generative Models".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..inference.target.program import DATA_PLATE, BoundData, describe
from .amortized import feature_count, positive

#: Log odds of a known class: the probability of any other is zero in any precision.
_SURE = 1e4


class SemiSupervised(PyroModule):
    """q(c | x) and q(z | x, c), each on a body of hidden layers of its own.

    Args:
        network: body of q(c | x), from pictures `(N, *shape)` to features `(N, H)`; None takes the model's own kind
            (`model.inference_network()`), as q(z | x, c) does.
        alpha: weight of a labelled picture's classification loss beside its ELBO; None takes the number of all pictures over that
            of the labelled ones.
    """

    family = "semi_supervised"
    objective = "elbo"
    discrete = "guide"
    amortized = True
    first_step = 0.002

    def __init__(
        self, model: Callable[..., Any], data: BoundData, *, network: nn.Module | None = None, alpha: float | None = None
    ) -> None:
        super().__init__()
        if not (hasattr(model, "inference_network") and hasattr(model, "classes")):
            raise ValueError(
                "guide 'semi_supervised' is for SemiSupervisedVAE, whose class is a latent of each picture; use 'amortized' for others"
            )
        self.program = describe(model, data)
        if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= alpha < math.inf):
            raise ValueError(f"alpha weighs the classification loss: a finite number that is not negative, got {alpha!r}")
        bound = data.bind(model)
        self.num_labelled = int((bound["y"] >= 0).sum())
        self.in_streams = getattr(data, "streams", None) is not None
        self.alpha = len(data) / max(1, self.num_labelled) if alpha is None else float(alpha)
        self.classes: int = model.classes
        latents = self.program.latents["z"].shape[-1]
        x = bound["x"].to(torch.get_default_dtype())
        # Two bodies, as in the paper: what tells classes apart is not what tells styles apart.
        self.body = model.inference_network()
        self.foreign = network is not None
        self.class_body = model.inference_network() if network is None else network
        self.register_buffer("center", x.mean(0))
        self.register_buffer("scale", (x - x.mean(0)).square().mean().sqrt().clamp_min(1e-6))
        width, features = (feature_count(body, x[:2], ["x"]) for body in (self.body, self.class_body))
        self.classifier = nn.Linear(features, self.classes)
        self.style = nn.Linear(width + self.classes, 2 * latents)
        with torch.no_grad():  # begins near a standard normal and a fair classifier
            for head in (self.classifier, self.style):
                head.weight.mul_(0.1)
                head.bias.zero_()

    def forward(self, x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None) -> None:
        """Draws class and style of these pictures."""
        seen = self._seen(x)
        logits = self.classifier(self.class_body(seen))
        size = len(x) if index is None else num_data or self.program.num_data
        infer: Any = {}
        if y is not None:
            infer["auxiliary"] = self._classification(logits, y, size)
            told = _SURE * _one_hot(y.clamp_min(0), self.classes, logits)
            logits = torch.where((y >= 0).unsqueeze(-1), told, logits)
        with pyro.plate(DATA_PLATE, size, subsample=index, dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=logits), infer=infer)
            classes = _one_hot(c, self.classes, seen)
            features = self.body(seen)
            shape = torch.broadcast_shapes(features.shape[:-1], classes.shape[:-1])
            both = torch.cat([features.expand(*shape, -1), classes.expand(*shape, -1)], -1)
            loc, raw = self.style(both).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, positive(raw)).to_event(1))

    def probs(self, name: str = "c", *, x: Tensor, **others: Any) -> Tensor:
        """Return q(c | x) of pictures, `(N, K)`, whatever else is given of them."""
        return torch.softmax(self.classifier(self.class_body(self._seen(x))), -1)

    def given(self, values: Mapping[str, Any]) -> Tensor | None:
        """What a body of the user's says of these pictures, who may have it look across them; None if it is the model's own kind."""
        return self.class_body(self._seen(values["x"])) if self.foreign else None

    def _classification(self, logits: Tensor, y: Tensor, size: int) -> Tensor:
        """What is maximised beside the bound: log q(c | x) of known labels, in nats of the whole data set of `size` pictures."""
        known = (y >= 0).to(logits)
        right = torch.log_softmax(logits, -1).gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        # A stream has its share of labels in every batch; a batch of all pictures may hold any number of them, or none.
        scale = self.num_labelled / known.sum().clamp_min(1.0) if self.in_streams else size / len(y)
        return self.alpha * scale * (right * known).sum()

    def _seen(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.scale


def _one_hot(c: Tensor, classes: int, like: Tensor) -> Tensor:
    """Classes `(...)` as `(..., K)` zeros and ones; torch's own function reads values, which no compiled step can."""
    return (c.unsqueeze(-1) == torch.arange(classes, device=c.device)).to(like)
