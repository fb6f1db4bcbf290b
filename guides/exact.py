"""The exact posterior as a guide, where the model knows it: the loss equals -log evidence for every single draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.nn import PyroModule

from ..inference.target.program import BoundData, describe


class Exact(PyroModule):
    """Draws from `model.exact_posterior(data)`; there is nothing to train.

    Where all latents are discrete it draws nothing: they are summed out, and drawn afterwards from their exact posterior. The
    loss is then -log evidence at the model's parameters, which are trained by it.
    """

    family = "exact"
    objective = "elbo"

    def __init__(self, model: Callable[..., Any], data: BoundData) -> None:
        super().__init__()
        solve = getattr(model, "exact_posterior", None)
        self._draw: Callable[..., Any] | None = None
        if solve is None and not describe(model, data).continuous:
            return
        if solve is None:
            raise ValueError(
                f"guide 'exact' needs a model with exact_posterior(data), and {type(model).__name__} has none; use 'full_rank' or 'mean_field'"
            )
        posterior = solve(data)
        if not hasattr(posterior, "as_guide"):
            raise ValueError(
                f"the exact posterior of {type(model).__name__} is known by its moments but cannot be drawn site by site; use "
                "'structured' or 'mean_field', and compare with bz.reference"
            )
        self._draw = posterior.as_guide()

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Draws every latent from the posterior of the data that the guide was built with."""
        if self._draw is not None:
            self._draw(*args, **kwargs)
