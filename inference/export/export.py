"""A fit as an ArviZ `DataTree`.

    chain = restart, draw = draw from that restart's guide

Groups: posterior, posterior_predictive, prior, prior_predictive, log_likelihood, observed_data, constant_data
and sample_stats (`log_p`, `log_q` of every draw). Models whose latents all belong to single observations have `log_marginal` and
`log_conditional` in place of log_likelihood. Networks also have `f`, their outputs at some inputs, in the posterior and
the prior: what R-hat, effective sizes and figures should look at. Of a large network few weights and, where its data are
large, a part of the observations are exported; attributes that end in `_note` say which, and why a group is absent. Networks of
adaptive depth have the group `depth`: the probabilities of 0 to L layers for some inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import xarray as xr
from torch import Tensor

from ..draws import Draws, seed_of
from ..likelihood.log_marginal import Joint, log_marginal
from ..run import HOPELESS
from .chosen_rows import choose_rows, examples_of, label_rows, on_rows
from .chosen_weights import Chosen, choose
from .depths import depth_group, examples_at, has_depths
from .fit_attributes import describe_fit
from .function_space import F, Functions, functions_at, is_network, num_shared
from .labels import Labels
from .network_draws import Wanted, collect_network, draw_seed
from .tree_arrays import Arrays, collect, log_likelihoods, prior_draws, sample_stats
from .tree_groups import constant_group, log_likelihood_group, marginal_group, observed_group, samples, stats_group

if TYPE_CHECKING:
    from ..result import Fit
    from ..run import Run


def to_arviz(
    fit: Fit,
    n: int = 1000,
    *,
    log_likelihood: bool = True,
    predictive: bool = True,
    prior: bool = True,
    functions: Any = None,
    weights: Any = None,
    rows: Any = None,
    depths: Any = None,
    seed: int | None = None,
) -> xr.DataTree:
    """The fit as a tree of data sets with named dimensions.

    Args:
        n: draws a chain; chains are the fit's restarts.
        log_likelihood: whether to store one value an observation and draw, in nats, local discrete latents
            summed out.
        predictive: whether to simulate the training data from every draw.
        prior: whether to draw from the prior, and the data that it predicts (if `predictive`).
        functions: of networks, the inputs of `f` (chain, draw, f_input, f_output), scaled as the training data: a tensor (M, ...),
            `{"x": tensor}` or `Data`. By default the first 100 rows of the training data; False for no f.
        weights: which entries of the latents that all observations share: True for all, a number of random entries a site,
            site -> positions (k,) in the flattened value or (k, dims), or False for none. By default all; ten a site of networks
            with more than 2,000 weights. Of networks this is about the weights: a noise scale is always there.
        rows: of networks, the observations whose likelihood and simulations are stored: a number of random ones, or a tensor of
            row numbers. By default all, or as many as half a minute and 800 MB a group allow. Of models whose latents all belong to
            single observations, such as a VAE, with a guide that can be asked about each alone, the examples to look at: everything
            is about these, along the dimension `example`. By default 20. In place of log_likelihood such models have log_marginal,
            log p of each with its latents integrated out, and log_conditional, log p given the draws, which no LOO may take for it.
        depths: of networks of adaptive depth, the examples of the group `depth`: p(z | x, y), averaged over the draws, and q(z | x)
            (chain, depth_input, depth). `Data`, by default the first 100 rows of the training data; False for no such group.
        seed: by default the fit's own; then the best restart's chain is `fit.sample(n)`.

    Returns:
        The tree, in the model's units (attribute `units`).

    Raises:
        ValueError: no draws asked for, a model without latents, data that are not in memory, or an option that does not fit the
            model.
    """
    check_draws(fit, n)
    n, seed = int(n), seed_of(fit, seed)
    network = is_network(fit.model, fit.program)
    singly = fit.run.one_by_one(fit.data) and not network
    if not network and ((rows is not None and not singly) or not (functions is None or functions is False)):
        raise ValueError(
            "functions is for networks, models with outputs(weights, x) such as BayesianNN; leave it out"
            if rows is None
            else "rows is for networks, and for models whose latents all belong to single observations with a guide that can be asked about each "
            "alone, such as 'amortized' with a network that looks at one at a time; leave it out"
        )
    local = fit.program.all_local and not network
    examples: Tensor | None = None
    whole = fit
    if singly:
        fit, examples = examples_of(fit, rows, seed=seed)
    deep = has_depths(fit.model)
    if not (deep or depths is None or depths is False):
        raise ValueError("depths is for networks of adaptive depth (AdaptiveDepthResNet); leave it out")
    at_depths = examples_at(fit, depths) if deep and depths is not False else None
    chosen = _chosen(fit, weights, seed, network)
    at = functions_at(fit, functions) if network and functions is not False else None
    if not chosen.sites and at is None:
        raise ValueError("weights=False and functions=False leave nothing of the posterior; ask for one of them")
    cut = choose_rows(fit, rows, n * len(fit.runs), seed=seed) if network else None
    part = on_rows(fit, cut)
    labels = _labels(part, examples if singly else cut, chosen, at)

    def of_prior(values: Mapping[str, Tensor]) -> Arrays:
        return chosen(values) | ({} if at is None else {F: at(fit.run.owned, values).numpy()})

    if network:
        found = collect_network(fit, n, seed, Wanted(chosen, at, part, log_likelihood, predictive))
    else:
        draws = [run_draws(fit, run, n, seed) for run in fit.runs]
        found = collect(fit, draws, chosen, log_likelihood=log_likelihood, predictive=predictive, seed=seed)
    pointwise = log_likelihood_group(labels, fit.program, found.log_likelihood)
    groups = {
        "posterior": samples(labels, fit.program.latents, found.posterior),
        "posterior_predictive": samples(labels, fit.program.observed, found.predictive),
        "log_conditional" if local else "log_likelihood": pointwise,
        "sample_stats": stats_group(found.stats),
    }
    notes = found.notes | _notes(fit, chosen, cut, seed)
    if local and log_likelihood:
        notes["log_likelihood_note"] = (
            "LOO weighs draws of what observations share, and here each has latents of its own: log_conditional holds log p of each "
            f"given their draws{', log_marginal with these integrated out' if fit.objective == 'elbo' else ''}"
        )
    if examples is not None:
        notes["rows_note"] = f"{len(examples)} of the {len(whole.data)} observations, everywhere; rows= takes others"
    if at_depths is not None:
        groups["depth"], note = depth_group(fit, draws, at_depths)
        notes |= {"depth_note": note} if note else {}
    if prior:
        latents, observed, note = prior_draws(part, n, seed, of_prior, predictive=predictive)
        groups["prior"] = samples(labels, fit.program.latents, latents)
        groups["prior_predictive"] = samples(labels, fit.program.observed, observed)
        notes |= {"prior_note": note} if note else {}
    if local and fit.objective == "elbo" and log_likelihood:
        try:
            groups["log_marginal"] = marginal_group(labels, log_marginal(fit, k=max(n, 100), seed=seed))
        except Joint as reason:
            notes["log_marginal_note"] = str(reason)
    groups["observed_data"] = observed_group(part, labels)
    groups["constant_data"] = constant_group(part, labels, at)
    filled = {name: group for name, group in groups.items() if group.data_vars}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=describe_fit(whole) | notes), **filled})


def _chosen(fit: Fit, weights: Any, seed: int, network: bool) -> Chosen:
    shared = [name for name, site in fit.program.continuous.items() if not site.local]
    sites = [name for name in fit.program.latents if name in fit.model.sites] if network else shared
    return choose(fit.program, weights, sites, seed=seed, large=network and num_shared(fit.program) > HOPELESS)


def _labels(part: Fit, cut: Tensor | None, chosen: Chosen, at: Functions | None) -> Labels:
    labels = Labels(part.program, part.model, part.data)
    label_rows(labels, part, cut)
    chosen.label(labels)
    if at is not None:
        labels.add(F, "f", {"f_input": at.inputs, "f_output": at.outputs})
    return labels


def _notes(fit: Fit, chosen: Chosen, cut: Tensor | None, seed: int) -> dict[str, str]:
    """What is not there, and why."""
    notes = {"weights_note": chosen.note} if chosen.note else {}
    if cut is not None:
        notes["rows_note"] = (
            f"{len(cut)} of the {len(fit.data)} observations, in log_likelihood, the predictive groups, observed_data and "
            f"constant_data alike, so az.loo is about these; rows={len(fit.data)} takes all"
        )
        notes["sample_stats_note"] = "log p needs the likelihood of all observations, so it is not there"
    if fit.improper:
        notes["evidence_note"] = (
            "the prior is improper: log p is known up to a constant only, and there is no evidence and no k-hat of all latents"
        )
    return notes


def check_draws(fit: Fit, n: int, least: int = 1) -> None:
    """Raises ValueError unless the fit can give `n` draws with their densities."""
    if isinstance(n, bool) or not isinstance(n, Integral) or n < least:
        raise ValueError(f"n must be a whole number of draws, at least {least}, got {n!r}")
    if not fit.program.latents:
        raise ValueError("the model has no latent site, so there is no posterior to look at; use fit.predict")
    if getattr(fit.data, "streamed", False):
        raise ValueError(
            "the training data are streamed, and log p of all of them needs them in memory; use fit.sample "
            "and fit.predict, "
            "or fit a part, data.select(rows)"
        )


def run_draws(fit: Fit, run: Run, n: int, seed: int | None) -> Draws:
    """`n` draws of one restart with log p and log q; those of the best one are `fit.sample(n)`."""
    return run.draws(fit.data, n, draw_seed(fit, run, seed_of(fit, seed)))


def log_likelihood_tree(fit: Fit, labels: Labels, run: Run, draws: Draws) -> tuple[xr.DataTree, str]:
    """A tree of log_likelihood and sample_stats for one restart, and a note on what is missing."""
    arrays, note = log_likelihoods(fit, [run], [draws])
    groups = {
        "log_likelihood": log_likelihood_group(labels, fit.program, arrays),
        "sample_stats": stats_group(sample_stats([draws])),
    }
    return xr.DataTree.from_dict(groups), note
