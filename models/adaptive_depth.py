"""A residual network that decides for itself how many of its layers an input needs.

    z_n ~ p(z)                                    0 .. L, few layers preferred
    h_0 = stem(x_n),  h_l = h_{l-1} + [l <= z_n] F_l(h_{l-1})
    y_n ~ Categorical(softmax head(h_{z_n}))

Lecture: "Bayesian Control Flow". As printed, layer l is used when z <= l, which would switch layers off as z, "the number of
layers", grows; it is used when l <= z. The lecture draws a z for each input; one z for all of them (`scope="data"`) is depth
uncertainty (Antoran, Allingham, Hernandez-Lobato 2020). All depths come from one pass, so the sum over z costs no more than
the deepest network.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .classes import check_labels, check_several
from .contract import BoundData, data_plate
from .depth_priors import depth_prior as prior_of_depth
from .latent_weights import LatentWeights, LayerFilter
from .residual import ResidualNetwork
from .weight_priors import WeightPrior

#: log p(z) of a depth whose prior is zero: no data make up for it, and it is finite, since 0 * inf is no number.
_FORBIDDEN = -1e25


class AdaptiveDepthResNet(LatentWeights):
    """A posterior over the number of layers.

    Args:
        net: a `ResidualNetwork`, such as `bz.models.networks.residual_mlp(64, 10)`; it is copied.
        depth_prior: p(z): `geometric`, `poisson`, `uniform`, or L + 1 probabilities.
        depth_rate: p(z + 1) / p(z) of the geometric prior (0.5), or the rate of the Poisson prior (L / 4).
        scope: a z for each `input`, or one for the whole `data` set.
        prior: of the weights, as in `BayesianNN`; None leaves them points, which are trained.
        bayesian: which layers have latent weights, where there is a prior.
        biases: whether biases are latent, too, as in `BayesianNN`.
        freeze: whether weights that are points keep their values.
        init: where latent weights begin, as in `BayesianNN`.
    """

    probs: Tensor
    log_probs: Tensor

    def __init__(
        self,
        net: ResidualNetwork,
        depth_prior: str | Sequence[float] | Tensor = "geometric",
        depth_rate: float | None = None,
        scope: str = "input",
        prior: str | WeightPrior | None = None,
        bayesian: str | Sequence[str] | LayerFilter = "all",
        biases: bool | None = None,
        freeze: bool = False,
        init: str = "net",
    ) -> None:
        if not isinstance(net, ResidualNetwork):
            raise ValueError(
                f"net must be a ResidualNetwork, which answers after every layer, and is a {type(net).__name__}; make one with "
                "bz.models.networks.residual_mlp or residual_cnn"
            )
        if scope not in ("input", "data"):
            raise ValueError(f"scope must be 'input' (a depth for each) or 'data' (one depth for all), got {scope!r}")
        if prior is None and bayesian != "all":
            raise ValueError(
                "bayesian chooses the layers whose weights have a prior, and prior is None; give one, such as 'normal'"
            )
        super().__init__(net, "normal" if prior is None else prior, "none" if prior is None else bayesian, biases, freeze, init)
        self.scope = scope
        self.depth: int = net.depth
        self.register_buffer("probs", prior_of_depth(depth_prior, net.depth, depth_rate))
        # Taken in double precision: in single precision a steep prior's last probabilities are zero.
        self.register_buffer("log_probs", self.probs.log().clamp_min(_FORBIDDEN), persistent=False)

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, num_data: int | None = None, index: Tensor | None = None
    ) -> Tensor:
        """Score the classes y, or simulate them where y is None.

        Args:
            x: `(N, ...)` inputs.
            y: `(N,)` classes 0 .. K - 1.
            num_data: observations in the whole data set.
            index: `(N,)` the rows of x in it, for batches.

        Returns:
            Classes, observed or simulated, `(N,)`.
        """
        logits = self.run(self.draw_weights(x), x)
        # By its logarithms: probabilities below the precision's epsilon would be raised to it.
        prior = dist.Categorical(logits=self.log_probs.to(x))
        z = pyro.sample("z", prior) if self.scope == "data" else None
        with data_plate(len(x), num_data, index):
            z = pyro.sample("z", prior) if z is None else z
            row = torch.arange(len(x), device=x.device)
            return pyro.sample("y", dist.Categorical(logits=logits[row, z]), obs=y)

    def depth_posterior(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return p(z | x, y) of inputs with their classes: `(N, L + 1)`, or `(L + 1,)` for one depth for all of them.

        Args:
            logits: `(N, L + 1, K)` of every depth, as the network returns them.
            y: `(N,)` classes.
        """
        score = torch.log_softmax(logits, -1).gather(2, y.long()[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(2)
        score = score.sum(0) if self.scope == "data" else score
        return torch.softmax(score + self.log_probs.to(score), -1)

    def check(self, data: BoundData) -> None:
        """Raise ValueError where the data do not fit: another shape of x, labels that are no classes, a single class."""
        self.check_new(data)
        y = data.bind(self).get("y")
        if y is not None:
            check_several(y)

    def check_new(self, data: BoundData) -> None:
        """Raise ValueError where data that the network is asked about do not fit; all may be of one class."""
        bound = data.bind(self)
        out = self.probe(bound["x"])
        if bound.get("y") is not None:
            check_labels(bound["y"], out.shape[-1])
