"""The front door of the runner: guides by name, and the model's own where none is named."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from . import guides, inference
from .catalog import entry_of
from .inference.draws import check_seed
from .inference.engine.interrupts import import_whole
from .inference.engine.places import own_words
from .inference.engine.turns import in_turn
from .inference.target.program import check_data, describe

#: More latents than this and an unnamed guide is mean field instead of full rank.
FULL_RANK_BELOW = 200


@in_turn
def fit(
    model: Callable[..., Any],
    data: Any,
    guide: str | Mapping[str, str] | Callable[..., Any] | None = None,
    *,
    guide_options: dict[str, Any] | None = None,
    loss: Literal["auto", "monte_carlo", "analytic_kl", "importance_weighted"] = "auto",
    optimizer: Any = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    num_particles: int = 1,
    estimator: Literal["auto", "shared", "local", "flipout"] = "auto",
    schedule: str | Callable[[int, int], float] | None = None,
    clip_norm: float | None = None,
    kl_weight: float | Callable[[int, int], float] | None = None,
    free_bits: float = 0.0,
    resample: int | None = None,
    restarts: int = 1,
    seed: int = 0,
    discrete: Literal["marginalize", "guide"] = "marginalize",
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    validation: Any = None,
    callbacks: Sequence[Callable[[Any], bool | None]] = (),
    progress: bool = True,
    compile: Literal["auto"] | bool = "auto",
) -> inference.Fit:
    """Fits a variational posterior by SVI.

    With nothing but model, data and guide, the runner chooses start, step size, averaging and stopping itself, and
    `fit.converged` and `fit.stop_reason` say how it ended. The model and a ready guide that is a module are copied first, so two
    fits never share parameters. Modules that are no part of them, such as those that a plain function holds, end with the values
    of the last fit, as in torch, and the next fit begins there (and says so); each fit answers from its own. Fits in several
    threads wait for each other, as Pyro has one state a process. Ctrl-C ends a fit after a whole step and keeps it.

    Args:
        model: a `PyroModule`, or any Pyro callable.
        data: a `bayeszoo.data.Data`.
        guide: a family's name (`bayeszoo.guides.FAMILIES`), a family for each part (`{"weights": "mean_field", "z": "exact"}`: all
            continuous latents, and discrete sites by name), a builder `(model, data) -> guide`, a ready guide (any Pyro
            autoguide, any callable), or None for the model's matching family.
        guide_options: options of the family, such as `{"rank": 3}`.
        loss: `monte_carlo`, `analytic_kl`, `importance_weighted` (over the particles; Burda et al. 2016, with the doubly
            reparametrised gradient of Tucker et al. 2019 where the family has one), or `auto`: analytic where the family and every
            prior allow it.
        optimizer: a learning rate (of Adam), a `torch.optim` class or `functools.partial` of one; None chooses.
        steps: number of updates; None runs until convergence.
        epochs: the same, in passes over the data.
        batch_size: rows a step; None takes all. Losses are of the whole data set either way, in nats.
        num_particles: draws a step, run as one batch where the model allows.
        estimator: where the noise of a network's weights is drawn: one draw for the batch (`shared`), in the activations of each
            example (`local`), or with signs of its own for each example (`flipout`); `auto` takes `local` where that changes
            nothing but the gradient's variance: factorised guides, fully connected layers.
        schedule: learning rate over the given steps: `constant`, `cosine`, `linear` or `(step, steps) -> factor`.
        clip_norm: greatest global norm of the gradient.
        kl_weight: what multiplies the KL term in the gradient, a number or `(step, steps) -> weight` for annealing; reported
            losses are never weighted.
        free_bits: nats of KL that each latent number of an observation has at no cost in the gradient, averaged over the batch,
            so that codes stay in use; all d numbers as one group with d times as much where their KL has no closed form
            (`amortized_full_rank`, flows). Reported losses are the plain ELBO's.
        resample: of how many of the draws of an importance-weighted bound the gradient is taken, drawn by their weights; None takes
            all. One of 50 makes steps of an autoencoder two to three times as fast and aims at the same gradient, with more noise.
        restarts: independent fits from overdispersed starts; they become ArviZ chains.
        seed: same seed and device, same losses.
        discrete: `marginalize` sums out discrete latents that the guide does not have and draws them afterwards; `guide`
            enumerates them in the guide.
        device: `auto` takes the GPU where there is one.
        dtype: precision of the fit; None takes the data's own (tables are float64, images float32).
        validation: held-out `Data`; `fit.validation_losses` then has -E_q log p(y | z) an observation in nats, and where every latent
            belongs to a single observation and the guide's family amortises (an autoencoder) the negative ELBO of a new one.
        callbacks: called with a `Progress` (step, loss, the guide, the parameters by name) after every step; one that returns True
            stops the fit.
        progress: whether to draw a progress bar where there is a terminal or notebook.
        compile: whether the steps run as one compiled graph. `auto` compiles where the steps to come are worth it; both engines
            give the same losses, up to rounding. With callbacks `auto` stays eager; under True a callback may change tensors in
            place, and nothing else of what the model reads.

    Returns:
        A `Fit`.

    Raises:
        ValueError: one sentence for what was wrong, before anything is trained.
        NonFiniteError: the loss or a gradient became NaN or infinite; `error.fit` holds the last finite state.
    """
    check_data(model, data)
    check_seed(seed)
    seed = int(seed)
    counts: Any = (steps, epochs, batch_size, num_particles, restarts, resample)  # NumPy's whole numbers, too
    steps, epochs, batch_size, num_particles, restarts, resample = (int(n) if isinstance(n, np.integer) else n for n in counts)
    import_whole()
    if guide is None:
        guide = matching_guide(in_precision(model, data), data)
    name = ""
    builder: Any = guide
    options = dict(guide_options or {})
    if isinstance(guide, Mapping):
        guide = guides.in_words(guide)
    if isinstance(guide, str):
        name = guides.checked_name(guide)

        def builder(model: Callable[..., Any], data: Any) -> Any:
            return guides.build(name, model, data, discrete=discrete, **options)

    elif options:
        raise ValueError("guide_options are for a family's name; give them to the builder or guide yourself")
    with own_words():
        return inference.fit(
            model, data, builder, guide_name=name, loss=loss, optimizer=optimizer, steps=steps, epochs=epochs,
            batch_size=batch_size, num_particles=num_particles, estimator=estimator, schedule=schedule, clip_norm=clip_norm,
            kl_weight=kl_weight, free_bits=free_bits, resample=resample, restarts=restarts, seed=seed, discrete=discrete,
            device=device, dtype=dtype, validation=validation, callbacks=callbacks, progress=progress, compile=compile,
            guide_options=options,
        )  # fmt: skip


def in_precision(model: Callable[..., Any], data: Any) -> Callable[..., Any]:
    """The model as the fit will run it: a copy in the data's precision, where it is a module with numbers of another."""
    if not isinstance(model, nn.Module):
        return model
    numbers = (t.dtype for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point())
    if all(dtype == data.dtype for dtype in numbers):
        return model
    return copy.deepcopy(model).to(data.dtype)


def matching_guide(model: Callable[..., Any], data: Any) -> str:
    """The family of a zoo model's own entry; for other models full rank, mean field where there are many latents."""
    entry = entry_of(model)
    if entry is not None and guides.fits(entry.guide, model, data):
        return entry.guide
    program = describe(model, data)
    if not program.continuous:
        return "exact"
    if hasattr(model, "initial_values"):  # a network's weights: too many and too little correlated for a covariance
        return "mean_field"
    if program.local and guides.fits("structured", model, data):
        return "structured"
    size = sum(site.shape.numel() for site in program.continuous.values())
    return "full_rank" if size <= FULL_RANK_BELOW and not program.local else "mean_field"
