"""What a fit returns: the trained pair, its record, and everything that people ask of a posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .asked_rows import refuse_other_rows
from .draws import chunk_size, seed_of
from .prediction.new_inputs import check_scale, new_inputs, new_observations, observed_site
from .prediction.prediction import Prediction
from .prediction.predictive import predictive
from .run import Run
from .target.arrays import as_tensor
from .target.density import EachDraw, joined_message, log_likelihood
from .target.program import Program, base_of, check_data, require_data

if TYPE_CHECKING:
    from .early_exit.early_exit import EarlyExit
    from .likelihood.active_units import ActiveUnits
    from .likelihood.inference_gap import InferenceGap
    from .likelihood.log_marginal import LogMarginal
    from .likelihood.out_of_domain import Strangeness
    from .prediction.averaging import AveragingCurve
    from .prediction.picture_check import PictureCheck
    from .prediction.picture_statistics import Statistic
    from .prediction.scores import ClassScores, NumberScores


@dataclass(frozen=True)
class Fit:
    """A fitted variational posterior.

    Attributes:
        runs: one `Run` a restart, each from its own start.
        best: the restart with the lowest loss (of an importance-weighted bound, with the best bound); everything but `to_arviz` speaks of it alone.
        data: the training data, on the fit's device.
        settings: what was asked of the runner.
        seconds: wall time of all restarts.
    """

    runs: tuple[Run, ...]
    best: int
    data: Any
    settings: Any
    seconds: float

    @property
    def run(self) -> Run:
        """The best restart."""
        return self.runs[self.best]

    @property
    def model(self) -> Any:
        """The fit's own copy of the model, with its trained parameters if it has any."""
        return self.run.owned.model

    @property
    def guide(self) -> Any:
        """The trained guide."""
        return self.run.owned.guide

    @property
    def program(self) -> Program:
        """The model's structure on the training data."""
        return self.run.program

    @property
    def losses(self) -> list[float]:
        """The loss at every step, of the whole data set in nats: negative ELBO, importance-weighted bound, or a surrogate's loss."""
        return self.run.history.losses

    @property
    def loss(self) -> float:
        """The trained guide's loss in nats, from fresh draws; `loss_error` is its Monte Carlo standard error.

        The negative ELBO also where an importance-weighted bound was trained, which is what `losses` then hold.
        """
        return self.run.loss

    @property
    def loss_error(self) -> float:
        """Monte Carlo standard error of `loss`, in nats."""
        return self.run.loss_error

    @property
    def loss_name(self) -> str:
        """What `loss` is."""
        return getattr(self.guide, "loss_name", "negative ELBO") if self.objective == "surrogate" else "negative ELBO"

    @property
    def validation_losses(self) -> list[tuple[int, float]]:
        """(step, -E_q log p(y | z) a held-out observation in nats, or its negative ELBO where all its latents are its own)."""
        return self.run.history.validation

    @property
    def objective(self) -> str:
        """`elbo`, a bound (loss >= -log evidence), or `surrogate`."""
        return "surrogate" if self.run.point or self.improper else "elbo"

    @property
    def improper(self) -> bool:
        """Whether a latent's prior has no finite integral: then nothing is an evidence, and no loss a bound on it."""
        return any(getattr(base_of(site.distribution), "improper", False) for site in self.program.latents.values())

    @property
    def estimator(self) -> str:
        """How the loss was estimated: Monte Carlo, with an analytic KL, importance-weighted, or at a point."""
        if self.run.point:
            return "point"
        name = self.run.objective.estimator
        return name + (" (path derivative)" if getattr(self.guide, "path_derivative", False) and name == "monte_carlo" else "")

    @property
    def settled(self) -> bool:
        """Whether the optimiser arrived at the best member of the family."""
        return self.run.history.converged

    @property
    def converged(self) -> bool:
        """Whether the optimiser settled and importance weights confirm the means (to 0.1 sd) and sds (to 10 %) of all latents.

        A family that cannot hold the posterior settles without converging: mean field on correlated latents, say. Point
        guides have no weights; they converge when the optimiser settles.
        """
        return self.settled and not self.run.doubt

    @property
    def engine(self) -> str:
        """What ran the best restart's steps: `eager` or `compiled`."""
        return self.run.history.engine

    @property
    def timings(self) -> dict[str, float]:
        """Seconds of the best restart: `start`, `compile` (capture, checks and compiler), `steps`, `evaluation`."""
        return {"start": 0.0, "compile": 0.0, "steps": 0.0, "evaluation": 0.0} | self.run.history.seconds

    @property
    def stop_reason(self) -> str:
        """Why the best restart stopped, one sentence, and what speaks against its answer."""
        reason = self.run.history.stop_reason
        if not self.run.doubt:
            return reason
        reason = reason.replace("converged:", "the optimiser settled:", 1) if self.settled else reason
        return f"{reason}; but {self.run.doubt}"

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.settings.seed)

    @property
    def device(self) -> torch.device:
        """Where it was fitted."""
        return self.run.owned.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the fit."""
        return self.run.owned.dtype

    def __repr__(self) -> str:
        model = (
            type(self.model).__name__ if isinstance(self.model, torch.nn.Module) else getattr(self.model, "__name__", "model")
        )
        error = f" ± {self.loss_error:.2g}" if self.loss_error > 0 else ""
        return (
            f"Fit({model}, guide={self.settings.guide or self.run.family!r}, {self.loss_name} {self.loss:.6g}{error} nats, "
            f"{len(self.losses)} steps, {self.seconds:.1f} s, {self.stop_reason})"
        )

    def sample(self, n: int = 1000, *, data: Any = None, units: str = "model", seed: int | None = None) -> dict[str, Tensor]:
        """Draws from the fitted posterior.

        Args:
            n: number of draws.
            data: other data for the latents of single observations (guides that amortise); by default the training data.
            units: `model`, or `original` to undo a table's standardisation where the model knows how.
            seed: by default the fit's own, so that the same call gives the same draws.

        Returns:
            Site -> CPU tensor (n, *shape).
        """
        _check_draws(n)
        if units not in ("model", "original"):
            raise ValueError(f"units must be 'model' or 'original', got {units!r}")
        where = self.data
        if data is not None:
            if data is not self.data:
                refuse_other_rows(self.guide, self.run.asked(self.data), self.program)
            if isinstance(data, (Tensor, np.ndarray)):
                data = new_observations(self.data, as_tensor(data))
            require_data(data)
            where = data.to(self.device, self.dtype)
            check_data(self.model, where, new=True)
        draws = self.run.draws(where, n, self._seed(seed, 11), score=False)
        order = [name for name in self.program.latents if name in draws.values]
        values = {name: draws.values[name].detach().cpu() for name in order}
        if units == "model" or self.data.scaler is None:
            return values
        convert = getattr(self.model, "to_original", None)
        if convert is None:
            raise ValueError(
                "this model has no to_original(draws, scaler), so its latents cannot be put into original units; "
                "use units='model', or predict(), which always answers in original units"
            )
        converted: dict[str, Tensor] = convert(values, self.data.scaler)
        return converted

    def predict(
        self,
        inputs: Any = None,
        n: int = 1000,
        *,
        num_data: int | None = None,
        seed: int | None = None,
        site: str | None = None,
        keep_draws: bool = True,
    ) -> Prediction:
        """The posterior predictive at new inputs.

        Draws are made and run in chunks, so that memory is bounded by what is kept; the numbers depend on the seed alone.

        Args:
            inputs: the model's inputs by name (`test.inputs`), or one tensor for a model with one input; for a model without
                inputs leave it out and say how many observations, `num_data`.
            n: posterior draws.
            site: which observed site, where the model has several.
            keep_draws: whether the prediction holds the (n, N, ...) simulated outcomes, and the likelihoods that the log density
                of numbers needs; without them it holds averages over the draws alone.

        Returns:
            A `Prediction` in the target's original units.
        """
        _check_draws(n)
        found = observed_site(self.program, site)
        new = new_inputs(self.data, self.model, inputs, num_data)
        return predictive(self.run, self.data, new, n, found, seed=seed_of(self, seed), keep=keep_draws)

    def _global_discrete(self) -> list[str]:
        return [name for name, s in self.program.discrete.items() if not s.local]

    def scores(
        self, test: Any, n: int = 1000, *, seed: int | None = None, site: str | None = None
    ) -> ClassScores | NumberScores:
        """How good predictions are on data that the fit has not seen; see `scores.scores`.

        Args:
            test: `Data` with known outcomes, standardised as the training data.
        """
        check_scale(self.data, test)
        found = self.predict(test.inputs, n, num_data=None if test.inputs else len(test), seed=seed, site=site)
        return found.scores(test)

    def averaging_curve(self, test: Any, ks: Sequence[int] = (1, 2, 5, 10, 30, 100), **options: Any) -> AveragingCurve:
        """One network, k networks, the mean weights: accuracy and time; see `averaging.averaging_curve`."""
        from .prediction.averaging import averaging_curve

        return averaging_curve(self, test, ks, **options)

    def log_likelihood(self, n: int = 1000, *, seed: int | None = None, site: str | None = None) -> Tensor:
        """log p(observation | draw) of the training data, (n, N) on the CPU, in nats.

        Chunked, so that no more than about 100 MB are held beside the result. Local discrete latents are summed out; other
        latents of single observations take their drawn values. Observed sites that a sum over a latent joins have one value together;
        they are named together, `x_y`.

        Args:
            n: draws.
            seed: of the draws.
            site: which observed site, by default the first.

        Raises:
            ValueError: there is no such site, or it has no value of its own.
        """
        if site is not None and "_" not in site:
            observed_site(self.program, site)
        draws = self.run.draws(self.data, n, self._seed(seed, 11), discrete=bool(self._global_discrete()), score=False)
        try:
            return self.pointwise(self.run, draws.values, site, num=n)
        except KeyError as error:
            if site is None or error.args[0] != site:
                raise
            if len(error.args) < 2:
                observed_site(self.program, site)
                raise
            raise ValueError(joined_message(site, error.args[1])) from error

    def pointwise(self, run: Run, values: Mapping[str, Tensor], site: str | None = None, num: int = 1) -> Tensor:
        """log p(observation | values) for given draws of one restart, `num` where there are no latents; see `log_likelihood`.

        Raises:
            KeyError: the site has no value of its own; the error holds the sites that have one together with it.
        """
        wanted = next(iter(self.program.observed)) if site is None else site

        def pick(parts: dict[tuple[str, ...], Tensor]) -> Tensor:
            for sites, value in parts.items():
                if "_".join(sites) == wanted or (site is None and wanted in sites):
                    return value
            raise KeyError(wanted, *(sites for sites in parts if wanted in sites))

        kept = {k: v for k, v in values.items() if not (self.program.latents[k].discrete and self.program.latents[k].local)}
        num = len(next(iter(values.values()))) if values else num
        with run.owned.active(0), torch.no_grad():
            kwargs = self.data.bind(run.owned.model)
            if not kept:  # nothing but what is summed out: the same for every draw
                same: Tensor = pick(log_likelihood(self.program, run.owned.model, kwargs, {}))
                return same.cpu().expand(num, *same.shape).clone()

            def one(v: Mapping[str, Tensor]) -> Tensor:
                return pick(log_likelihood(self.program, run.owned.model, kwargs, v))

            each = EachDraw()
            chunk = chunk_size(len(self.data), torch.finfo(self.dtype).bits // 8)
            out: Tensor | None = None
            for i in range(0, num, chunk):
                part = each(one, {k: v[i : i + chunk] for k, v in kept.items()}, chunk=chunk)
                if out is None:
                    out = torch.empty(num, *part.shape[1:], dtype=part.dtype)
                out[i : i + chunk] = part.cpu()
        assert out is not None
        return out

    def _seed(self, seed: int | None, offset: int) -> int:
        return seed_of(self, seed) * 1009 + offset

    def log_marginal(
        self, data: Any = None, k: int = 1000, *, proposal: str = "guide", seed: int = 0, k_hat: bool = True
    ) -> LogMarginal:
        """log p(x) of single observations, their latents integrated out by importance sampling.

        Args:
            data: `Data`, or a tensor of observations for a model without inputs; None takes the training data.
            k: draws for each observation.
            proposal: where draws come from: the fitted `guide`, or naively the `prior`.
            seed: of the draws.
            k_hat: whether to fit the tail of each observation's weights, about a millisecond each.

        Returns:
            Values (N,) in nats with their Monte Carlo errors, effective draws and k-hat; `.mean`, `.bits_per_dim`, `.gap`.
        """
        from .likelihood.log_marginal import log_marginal

        return log_marginal(self, data, k, proposal=proposal, seed=seed, k_hat=k_hat)

    def out_of_domain(self, data: Any, k: int = 300, *, typical: float | None = None, seed: int = 0) -> Strangeness:
        """How strange observations are to a model of them: by log p(x), corrected for complexity, and by typicality.

        Args:
            data: `Data`, or a tensor of observations for a model without inputs.
            k: draws for each observation's log p(x).
            typical: mean log p(x) of training data in nats, where it is known; None takes it of up to 1,000 of them.
            seed: of the draws.

        Returns:
            `.likelihood`, `.complexity`, `.typicality` (N,), higher for what is stranger, `.typicality_of(group)` of several of a
            kind, and `.auroc(strangers)` of each score.
        """
        from .likelihood.out_of_domain import out_of_domain

        return out_of_domain(self, data, k, typical=typical, seed=seed)

    def latent_probs(self, data: Any, site: str | None = None) -> Tensor:
        """q of a discrete latent of new observations: the class of a `SemiSupervisedVAE`'s pictures, the depth of a network's inputs.

        Args:
            data: `Data`, or a tensor of what the model takes first, (N, ...).
            site: which discrete latent, where the model has several.

        Returns:
            Probabilities (N, K) on the CPU.

        Raises:
            ValueError: the guide has no network for a discrete latent.
        """
        from .prediction.latent_probs import latent_probs

        return latent_probs(self, data, site)

    def inference_gap(self, data: Any = None, *, steps: int = 300, k: int = 1000, seed: int = 0) -> InferenceGap:
        """How far the ELBO of an amortised guide lies below log p(x), and how much of that is the family's and the network's.

        Args:
            data: a few hundred observations, `Data` or a tensor; None takes the training data.
            steps: of the search for each observation's own best member of the family.
            k: draws for log p(x) and for each bound.
            seed: of all draws.

        Returns:
            `.approximation` and `.amortization`, each (N,) in nats, and what they are made of.
        """
        from .likelihood.inference_gap import inference_gap

        return inference_gap(self, data, steps=steps, k=k, seed=seed)

    def active_units(self, data: Any = None, n: int = 100, *, site: str | None = None, seed: int | None = None) -> ActiveUnits:
        """Which numbers of a code follow the observations, and the codes.

        Args:
            data: observations; None takes the training data.
            n: draws of each code.
            site: which latent, where the model has several.
            seed: by default the fit's own.

        Returns:
            `.variances` (D,) of the posterior means, `.active`, `.count`, `.order`, and the means themselves, `.codes` (N, D).
        """
        from .likelihood.active_units import active_units

        return active_units(self, data, n, site=site, seed=seed)

    def check_pictures(
        self,
        data: Any = None,
        n: int = 200,
        *,
        statistics: Mapping[str, Statistic] | None = None,
        size: tuple[int, int] | None = None,
        site: str | None = None,
        seed: int | None = None,
    ) -> PictureCheck:
        """Posterior predictive check of a model of pictures: sets drawn from it against the data, by numbers of each picture.

        Args:
            data: pictures, better ones that the model has not learned from; None takes up to 1,000 of the training data.
            n: sets to draw, each as large as the data.
            statistics: name -> function of pictures (N, H, W) that returns (N,), colours averaged; by default intensity, contrast,
                share of lit pixels, symmetry from left to right, and the ink's centre by row and column.
            size: (H, W), for pictures that are vectors and not square.
            site: which observed site, where the model has several.
            seed: by default the fit's own.

        Returns:
            Statistics of the data and of the drawn sets; print it, or see `.p_values` and `.to_arviz()`.
        """
        from .prediction.picture_check import check_pictures

        return check_pictures(self, data, n, statistics=statistics, size=size, site=site, seed=seed)

    def save(self, path: Any, *, overwrite: bool = False) -> None:
        """Writes the fit into a folder, from which `bayeszoo.load` reads it; see `inference.checkpoint`."""
        from .checkpoint import save

        save(self, path, overwrite=overwrite)

    def to_arviz(self, n: int = 1000, **options: Any) -> Any:
        """The fit as an ArviZ `DataTree` with `n` draws a chain, chains being restarts; see `export.to_arviz`."""
        from .export.export import to_arviz

        return to_arviz(self, n, **options)

    def loo(self, n: int = 1000, *, site: str | None = None, seed: int | None = None) -> Any:
        """Leave-one-out cross-validation with k-hat for every observation; see `loo.loo`."""
        from .diagnosis.loo import loo

        return loo(self, n, site=site, seed=seed)

    def diagnose(self, reference: Any = None, n: int = 1000, held_out: Any = None, *, seed: int | None = None) -> Any:
        """How far this fit is from the posterior, as far as can be told; see `diagnose.diagnose`."""
        from .diagnosis.diagnose import diagnose

        return diagnose(self, reference, n, held_out, seed=seed)

    def sparsify(self, threshold: float = 3.0, batch_size: int = 128, format: str = "fastest") -> Any:
        """The network of a `BayesianNN` as a plain torch network without the weights that are noise; see `sparsify.sparsify`."""
        from .pruning.sparsify import sparsify

        return sparsify(self, threshold, batch_size, format)

    def early_exit(
        self, x: Any, rule: str = "mode", *, n: int = 30, batch_size: int = 512, repeats: int = 3, seed: int = 0
    ) -> EarlyExit:
        """Classes of new inputs from a network of adaptive depth, with as few layers as the rule allows.

        Args:
            x: `Data`, or inputs `(N, ...)`.
            rule: `mode` (the most probable pair of class and depth) and `marginal` (the most probable class, the depth summed
                out) stop when no deeper layer can change the answer, so it is always that of the full computation; `sample`
                draws the depth from the prior, which cannot adapt to x; `amortized` takes the most probable depth of q(z | x).
            n: draws of the weights, where they are latent; probabilities are averaged over them.
            batch_size: inputs that go through the layers together; those that are certain leave it.
            repeats: how often the time is measured.
            seed: of the draws.

        Returns:
            Classes, layers used, operations, measured time, and the share of answers that equal the full computation's.
        """
        from .early_exit.early_exit import early_exit

        return early_exit(self, x, rule, n=n, batch_size=batch_size, repeats=repeats, seed=seed)


def _check_draws(n: Any) -> None:
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise ValueError(f"n must be a whole number of draws, at least 1, got {n!r}")
