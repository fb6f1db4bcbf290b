"""One restart of a fit: trained model and guide, how the training went, and what fresh draws say of its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .asked_rows import Asked, asked, has_table
from .diagnosis.psis import smooth
from .diagnosis.selfcheck import contradiction, widening
from .draws import Draws, chunk_size, draw
from .engine.owned import Owned
from .engine.places import is_family
from .engine.training import History
from .estimators.objective import Objective
from .target.density import EachDraw
from .target.program import FEW_LOCAL, Program
from .target.row_parts import RowParts, row_parts

#: With more latents than this no ratio of densities over all of them is even, however good the guide is.
HOPELESS = 2_000
#: Elements of all sites, times draws, that one evaluation of the loss looks at.
EVALUATED_ELEMENTS = 200_000_000
#: Draws where every latent belongs to one of many observations: the loss is then a sum over them, which few draws make even.
EVALUATED_LOCAL = 30
#: The same for the products of rows and shared latents, which is what a network costs: some ten seconds.
EVALUATED_PRODUCTS = 100_000_000_000


@dataclass
class Run:
    """One restart: trained model and guide, and how the training went."""

    owned: Owned
    program: Program
    objective: Objective
    history: History
    restart: int
    seconds: float
    family: str
    loss: float = math.nan
    loss_error: float = math.nan
    each: EachDraw = field(default_factory=EachDraw)
    k_hat: float = math.nan
    doubt: str = ""

    def __post_init__(self) -> None:
        # Dropout and batch norm in networks of the user's own: they have been trained, and are asked from here on.
        self.owned.eval()
        self.owned.borrowed.looks = False

    @property
    def point(self) -> bool:
        """Whether the guide is a point without log q."""
        return self.objective.surrogate is not None

    def draws(self, data: Any, num: int, seed: int, *, discrete: bool = True, score: bool = True) -> Draws:
        """`num` draws of all latents given the training data."""
        with self.owned.active(seed):
            parts = self.parts(data, whole=discrete and bool(self.program.discrete))
            return draw(self.owned, self.program, parts, num, self.each, point=self.point, discrete=discrete, score=score)

    def one_by_one(self, data: Any) -> bool:
        """Whether posteriors are looked at observation by observation.

        All latents belong to single ones, and the guide has a q for each that it can be asked for alone.
        """
        return self.program.all_local and (has_table(self.owned.guide) or self.asked(data) == "alone")

    def asked(self, data: Any) -> Asked:
        """How the guide may be asked about a part of the observations; of the training data."""
        if "_asked" not in self.__dict__:  # which takes some runs of a guide that is not ours
            self.__dict__["_asked"] = asked(self.owned, self.program, data)
        found: Asked = self.__dict__["_asked"]
        return found

    def parts(self, data: Any, *, whole: bool = False) -> RowParts:
        """The rows of a data set in parts that fit into memory, or all of them in one.

        A guide that is not one of ours may draw what depends on all rows.
        """
        whole = whole or not is_family(self.owned.guide)
        size = torch.finfo(self.owned.dtype).bits // 8
        return RowParts(self.owned.model, data, len(data)) if whole else row_parts(self.program, self.owned.model, data, size)

    def evaluate(self, data: Any, seed: int, num: int = 1000) -> None:
        """Sets the loss of the trained guide and its Monte Carlo error, in nats."""
        # Large data sets make each draw dear: fewer of them. The loss is then a sum over many rows, and needs few.
        sites = [*self.program.latents.values(), *self.program.observed.values()]
        size = sum(site.elements for site in sites)
        shared = sum(site.shape.numel() for site in self.program.continuous.values() if not site.local)
        num = max(6, min(num, EVALUATED_ELEMENTS // max(1, size), EVALUATED_PRODUCTS // max(1, shared * self.program.num_data)))
        if self.program.all_local and self.program.num_local > FEW_LOCAL:
            num = min(num, EVALUATED_LOCAL)
        parts = self.parts(data)
        if self.objective.surrogate is not None or getattr(data, "streamed", False) or not self.program.latents:
            recent = self.history.losses[-100:]
            if self.objective.surrogate is not None and not getattr(data, "streamed", False):
                with self.owned.active(seed), torch.no_grad():
                    # Dropout's loss is an average over masks; a point's is a number.
                    noisy = sum(self.objective.count_noise(next(iter(parts))[0])) > 0
                    recent = [
                        sum(share * float(self.objective(kwargs)[1]) for kwargs, share in parts)
                        for _ in range(max(10, min(num, 100)) if noisy else 1)
                    ]
            self.loss = sum(recent) / len(recent) if recent else math.nan
            self.loss_error = 0.0 if len(recent) == 1 else torch.tensor(recent).std().item() / math.sqrt(len(recent))
            return
        guide = self.owned.guide
        if not self.program.continuous and getattr(guide, "discrete", "") == "guide" and not getattr(guide, "relaxed", ()):
            # All that is random is summed over: one number, without draws.
            with self.owned.active(seed), torch.no_grad():
                self.loss, self.loss_error = float(self.objective(data.bind(self.owned.model))[1]), 0.0
            return
        draws = self.draws(data, num, seed + 1, discrete=False)
        assert draws.log_ratio is not None
        ratio = draws.log_ratio.double()
        # One ratio over thousands of observations' own latents is never even; those are judged one by one.
        few = self.program.num_local <= FEW_LOCAL and shared <= HOPELESS
        if num >= 100 and few and not self.one_by_one(data):
            self._check_moments(data, draws, seed)
        self.loss, self.loss_error = -float(ratio.mean()), float(ratio.std()) / math.sqrt(len(ratio))

    def _check_moments(self, data: Any, draws: Draws, seed: int) -> None:
        """Whether importance weights confirm the guide's means and sds; see `psis`.

        The guide's own draws never reach what it has cut off, so where the family can be widened, draws of the widened guide
        are weighted instead.
        """
        assert draws.log_ratio is not None
        weights = smooth(draws.log_ratio)
        self.k_hat = weights.k_hat
        if weights.exact:
            return
        size = sum(site.shape.numel() for site in self.program.continuous.values())
        guide, reliable, found = self.owned.guide, weights.reliable, None
        own = {name: draws.values[name] for name in self.program.continuous}
        if reliable and own:
            found = contradiction(own, own, weights)
        if found is None and getattr(guide, "can_widen", False) and size <= 200:
            # Draws that must be taken one by one are dear.
            num = max(1000, min(16_000, 8 * chunk_size(self.program.num_data, 8))) if self.each.vectorized else 1000
            with guide.widened(widening(size)):
                wide = self.draws(data, num, seed + 2, discrete=False)
            assert wide.log_ratio is not None
            wide_weights = smooth(wide.log_ratio)
            if wide_weights.reliable:
                # A thin tail can spoil the guide's own weights and leave its moments right: then these decide alone.
                own = self.draws(data, num, seed + 3, discrete=False, score=False).values
                own = {name: own[name] for name in self.program.continuous}
                found = contradiction(own, wide.values, wide_weights, means=not reliable)
                reliable = True
        if not reliable:
            self.doubt = (
                f"k-hat {self.k_hat:.2f} says that this guide is far from the posterior somewhere: try a richer family and look at "
                "diagnose()"
            )
            return
        if found is not None:
            self.doubt = (
                f"importance weights move the mean of {found.site} by {found.mean:.2f} sd and its sd by {-found.sd / max(1 + found.sd, 1e-3):+.0%}: "
                "this family cannot hold the posterior, try a richer one and look at diagnose()"
            )
