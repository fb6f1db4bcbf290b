"""Where a fit begins: the mode of the log density and the curvature there.

A quasi-Newton run (L-BFGS) climbs the log density in unconstrained coordinates, Newton steps finish it, and the inverse of
the negative Hessian is the first guess of the posterior's covariance. Where the climb ends in a bad place (a funnel's
neck, a ridge that never ends) the best point along its path is taken instead, judged by the ELBO of the Gaussian that
each would start, as Pathfinder does (Zhang, Carpenter, Gelman, Vehtari 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]

#: Above this many coordinates the Hessian is not formed; only its diagonal is estimated.
DENSE_LIMIT = 400
#: Above this many coordinates no climb is made at all: networks start at their own initial values.
CLIMB_LIMIT = 20_000


@dataclass(frozen=True)
class Start:
    """A Gaussian N(mean, scale_tril scale_tril^T) to begin from, in unconstrained coordinates.

    Attributes:
        mean: (D,).
        scale_tril: Cholesky factor (D, D) of the covariance, or None above `DENSE_LIMIT` coordinates.
        conditional_sd: (D,) 1 / sqrt of the precision's diagonal: what a factorised posterior should begin with.
        losses: the negative log density along the climb, in nats.
        converged: whether the climb ended in a point with no gradient left.
        note: one sentence when it did not.
        elbo: ELBO of this Gaussian in nats, from a few draws; only set where several starts were compared.
        raw: whether nothing is known of the posterior's scale: means then move in the latents' own units.
    """

    mean: Tensor
    scale_tril: Tensor | None
    conditional_sd: Tensor
    losses: tuple[float, ...]
    converged: bool
    note: str = ""
    elbo: float = math.nan
    raw: bool = False


def climb(log_density: LogDensity, u: Tensor, *, max_iterations: int = 300) -> tuple[list[Tensor], list[float]]:
    """L-BFGS with strong Wolfe line search; returns the points visited and the negative log density at each.

    Ends when a step changes the log density by less than its rounding, when the gradient is gone, or when the value
    stops being finite.
    """
    u = u.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [u], max_iter=1, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -log_density(u)
        if bool(torch.isfinite(loss)):
            loss.backward()
            if u.grad is not None and not bool(torch.isfinite(u.grad).all()):
                loss = torch.full_like(loss.detach(), math.inf)
        if u.grad is None or not bool(torch.isfinite(loss)):
            u.grad = torch.zeros_like(u)
        return loss

    path, losses = [u.detach().clone()], [float(closure().detach())]
    resolution = torch.finfo(u.dtype).eps
    quiet_steps = 0
    for _ in range(max_iterations):
        optimizer.step(closure)
        loss = float(closure().detach())
        if not math.isfinite(loss) or not bool(torch.isfinite(u).all()):
            break
        path.append(u.detach().clone())
        losses.append(loss)
        change = abs(losses[-2] - loss)
        quiet_steps = quiet_steps + 1 if change <= 4 * resolution * max(1.0, abs(loss)) else 0
        if quiet_steps >= 3 or float(u.grad.abs().max()) == 0.0:  # type: ignore[union-attr]
            break
    return path, losses


def hessian(log_density: LogDensity, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient (D,) and Hessian (D, D) of -log_density."""
    u = u.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = -log_density(u)
        (grad,) = torch.autograd.grad(value, u, create_graph=True, allow_unused=True, materialize_grads=True)
        if not grad.requires_grad:
            return value.detach(), grad.detach(), torch.zeros(len(u), len(u), dtype=u.dtype, device=u.device)
        eye = torch.eye(len(u), dtype=u.dtype, device=u.device)
        try:
            (matrix,) = torch.autograd.grad(grad, u, eye, is_grads_batched=True, retain_graph=True)
        except RuntimeError:  # an operation without a batching rule: one row at a time
            rows = [torch.autograd.grad(grad, u, row, retain_graph=True)[0] for row in eye]
            matrix = torch.stack(rows)
    matrix = matrix.detach()
    return value.detach(), grad.detach(), (matrix + matrix.T) / 2


def _inverse(precision: Tensor) -> tuple[Tensor, bool]:
    """Inverse of a precision matrix in scaled coordinates, its directions without curvature given unit scale."""
    if not bool(torch.isfinite(precision).all()):  # as little is known as without any curvature
        return torch.eye(len(precision), dtype=precision.dtype, device=precision.device), False
    diagonal = precision.diagonal().abs()
    scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
    values, vectors = torch.linalg.eigh(precision * scale * scale[:, None])
    floor = 1e-10 if precision.dtype == torch.float64 else 1e-5
    positive = bool((values > floor).all())
    # A direction that curves the wrong way says nothing about its own width: unit scale in these coordinates.
    safe = torch.where(values > floor, values, torch.ones_like(values))
    return (vectors / safe) @ vectors.T * scale * scale[:, None], positive


def find_start(
    log_density: LogDensity,
    u: Tensor,
    *,
    batched: Callable[[Tensor], Tensor],
    others: Sequence[Callable[[], Tensor]] = (),
    highest: bool = False,
) -> Start:
    """Climbs from u (D,) and describes the place where it arrives.

    Symmetric models (mixtures, networks) have a saddle at the prior's mean, where a climb that begins there must end. A
    place without an ordinary mode is therefore compared with those that climbs from `others` reach, by their ELBO.

    Args:
        log_density: u (D,) -> scalar, nats.
        batched: the same for many points (S, D) -> (S,); used to compare candidates.
        others: makers of further points to begin from, called only if needed.
        highest: whether the highest point is wanted itself, as of a network's weights, and no place to put a Gaussian.
    """
    first = _start_from(log_density, u, batched, highest=highest)
    if first.converged or len(u) > DENSE_LIMIT:
        return first
    starts = [first, *(_start_from(log_density, other(), batched, highest=highest) for other in others)]
    if highest:
        return max(starts, key=lambda s: float(log_density(s.mean).detach()))
    noise = torch.randn(64, len(u), dtype=u.dtype, device=u.device)
    scored = [replace(s, elbo=_elbo(batched, s.mean, s.scale_tril, noise)) for s in starts if s.scale_tril is not None]
    return max(scored, key=lambda s: s.elbo if math.isfinite(s.elbo) else -math.inf)


def _elbo(batched: Callable[[Tensor], Tensor], mean: Tensor, tril: Tensor, noise: Tensor) -> float:
    """ELBO of N(mean, tril tril^T) up to the constant of the normal's entropy, from given noise (S, D)."""
    with torch.no_grad():
        log_p = batched(mean + noise @ tril.T)
    return float(log_p.mean() + tril.diagonal().log().sum())


def _start_from(
    log_density: LogDensity, u: Tensor, batched: Callable[[Tensor], Tensor], *, max_iterations: int = 300, highest: bool = False
) -> Start:
    if len(u) == 0:
        return Start(u, torch.zeros(0, 0), torch.ones(0), (), True)
    if len(u) > CLIMB_LIMIT:
        note = f"{len(u)} latent values are too many for a quasi-Newton start; the fit began at the initial values"
        return Start(u.detach(), None, torch.full_like(u, 0.1).detach(), (), False, note)
    path, losses = climb(log_density, u, max_iterations=max_iterations)
    if len(u) > DENSE_LIMIT:
        return _diagonal_start(log_density, path[-1], losses)
    mean, precision, losses, settled = _newton(log_density, path[-1], losses)
    covariance, positive = _inverse(precision)
    note = ""
    if not (positive and settled):
        note = "the log density has no ordinary mode where the climb ended"
        if len(path) > 2 and not highest:
            mean, precision, covariance = _best_along(log_density, batched, [*path, mean])
    tril = _cholesky(covariance)
    curvature = precision.diagonal()
    conditional = torch.where(curvature > 0, curvature.clamp_min(1e-30).rsqrt(), covariance.diagonal().sqrt())
    return Start(mean, tril, conditional, tuple(losses), positive and settled, note)


def _newton(log_density: LogDensity, u: Tensor, losses: list[float]) -> tuple[Tensor, Tensor, list[float], bool]:
    """Damped Newton steps until the decrement, in posterior sds, is negligible."""
    value, grad, precision = hessian(log_density, u)
    settled = False
    for _ in range(20):
        covariance, positive = _inverse(precision)
        step = -covariance @ grad
        decrement = float((-grad @ step).clamp_min(0))  # squared distance to the mode in posterior sds
        if not math.isfinite(decrement):
            break
        if decrement < (1e-12 if u.dtype == torch.float64 else 1e-5):
            settled = True
            # One more step costs nothing and squares the error that is left.
            if positive and float(-log_density((u + step).detach()).detach()) <= float(value.detach()):
                u = (u + step).detach()
            break
        for damping in (1.0, 0.5, 0.1, 0.01):
            trial = (u + damping * step).detach()
            new = float(-log_density(trial).detach())
            if math.isfinite(new) and new < float(value.detach()):
                break
        else:
            # No descent is left at the precision of the numbers.
            settled = decrement < 1e-4
            break
        u = trial
        value, grad, precision = hessian(log_density, u)
        losses = [*losses, float(value.detach())]
    return u, precision, losses, settled


def _best_along(
    log_density: LogDensity, batched: Callable[[Tensor], Tensor], path: list[Tensor], *, most: int = 12, draws: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """The point of the path whose Gaussian has the highest ELBO."""
    stride = max(1, len(path) // most)
    noise = torch.randn(draws, len(path[0]), dtype=path[0].dtype, device=path[0].device)
    best = None
    for point in {id(p): p for p in [*path[::stride], path[-1]]}.values():
        _, _, precision = hessian(log_density, point)
        if not bool(torch.isfinite(precision).all()):
            continue
        covariance, _ = _inverse(precision)
        tril = _cholesky(covariance)
        elbo = _elbo(batched, point, tril, noise)
        if math.isfinite(elbo) and (best is None or elbo > best[0]):
            best = (elbo, point, precision, covariance)
    if best is None:
        eye = torch.eye(len(path[0]), dtype=path[0].dtype, device=path[0].device)
        return path[0], eye, eye
    return best[1:]


def _cholesky(covariance: Tensor) -> Tensor:
    sd = covariance.diagonal().clamp_min(torch.finfo(covariance.dtype).tiny).sqrt()
    correlation = covariance / sd / sd[:, None]
    eye = torch.eye(len(sd), dtype=sd.dtype, device=sd.device)
    jitter = torch.finfo(sd.dtype).eps
    while jitter < 1e3:  # a correlation matrix needs far less, unless something in it is not finite
        tril, info = torch.linalg.cholesky_ex(correlation + jitter * eye)
        if int(info) == 0:
            return tril * sd[:, None]
        jitter *= 10
    return sd.nan_to_num(1.0).diag()


def _diagonal_start(log_density: LogDensity, u: Tensor, losses: list[float], *, probes: int = 16) -> Start:
    """The curvature's diagonal alone, by Hutchinson's estimator with random signs."""
    u = u.detach().clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(-log_density(u), u, create_graph=True)
        diagonal = torch.zeros_like(u)
        for _ in range(probes):
            sign = torch.randint(0, 2, u.shape, device=u.device).to(u.dtype) * 2 - 1
            diagonal += sign * torch.autograd.grad(grad, u, sign, retain_graph=True)[0] / probes
    diagonal = diagonal.detach()
    sd = torch.where(diagonal > 1e-8, diagonal.clamp_min(1e-8).rsqrt(), torch.full_like(diagonal, 0.1))
    settled = len(losses) > 3 and abs(losses[-1] - losses[-2]) < 1e-3
    note = "" if settled else "the climb to the mode had not ended"
    return Start(u.detach(), None, sd, tuple(losses), settled, note)
