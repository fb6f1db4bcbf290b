"""Which observations a guide of single observations' latents can be asked about.

`alone`: about any observation by itself, as a network that sees it can; `number`: about the training data, by their numbers; `all`:
about the training data, all of them at once. A guide that is none of the families is tried: a table answers by the place in what
it is asked, whatever the data there, and a network whose answer depends on the other rows is none for single ones.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor, nn

from .engine.owned import Owned
from .engine.places import is_family
from .target.density import site_factor
from .target.program import DATA_PLATE, Fix, Program, sample_sites

type Asked = Literal["alone", "number", "all"]

#: Observations that a guide which is none of the families is tried with.
_TRIED = 20
#: Numbers that a run on all rows may make, for these to be asked beside.
_WHOLE = 200_000_000
#: Nats by which the densities of one value under two rows' q must differ, for the rows to be told apart.
_APART = 1e-2


def asked(owned: Owned, program: Program, data: Any) -> Asked:
    """How a guide may be asked about a part of the observations.

    Args:
        data: the training data.
    """
    guide = owned.guide
    if is_family(guide):
        if getattr(guide, "amortized", not hasattr(guide, "space")):
            return "alone" if _by_rows(owned, data) else "all"
        by_number = has_table(guide) or getattr(guide, "factorized", False)
        return "number" if by_number and takes_numbers(owned.model) else "all"
    with owned.active(0), torch.no_grad():
        tried = torch.linspace(0, len(data) - 1, min(len(data), _TRIED)).round().long().unique()

        def some(rows: Tensor) -> Mapping[str, Any]:
            kwargs: Mapping[str, Any] = data.select(tried[rows]).bind(owned.model)
            return kwargs

        def numbered(rows: Tensor) -> Mapping[str, Any]:
            kwargs: Mapping[str, Any] = data.batch(rows.to(owned.device), owned.model)
            return kwargs

        whole = None if getattr(data, "streamed", False) else data.bind(owned.model)
        beside = whole is not None and len(data) * max(1, program.row_elements) <= _WHOLE
        among = (whole, len(data), tried) if whole is not None and beside else None
        if _follows(owned, program, some(torch.arange(len(tried))), some, among):
            return "alone"
        if whole is not None and takes_numbers(owned.model) and _follows(owned, program, whole, numbered):
            return "number"
    return "all"


def _by_rows(owned: Owned, data: Any) -> bool:
    """Whether a body of the user's in a family of ours says the same of an observation whatever stands beside it."""
    guide = getattr(owned.guide, "continuous", owned.guide)
    if not hasattr(guide, "given"):
        return True
    with owned.active(0), torch.no_grad():
        rows = torch.linspace(0, len(data) - 1, min(len(data), _TRIED)).round().long().unique()
        whole = guide.given(data.select(rows).bind(owned.model))
        if whole is None:
            return True
        share = 1e-3 if whole.dtype == torch.float32 else 1e-7
        near = share * whole.abs().amax(0) + 1e-2 * share * whole.abs().max()  # one loud feature hides none of the others
        try:
            alone = torch.cat([guide.given(data.select(row[None]).bind(owned.model)) for row in rows])
            return bool(((alone - whole).abs() <= near).all())
        except (RuntimeError, ValueError, IndexError):  # batch norm with statistics of its batch takes no single one
            return False


def has_table(guide: Any) -> bool:
    """Whether a guide can be cut to some rows of the training data, `guide.select(rows)`."""
    return is_family(guide) and hasattr(guide, "select")


def takes_numbers(model: Any) -> bool:
    """Whether a model takes the numbers of the rows that it is called with."""
    return not lacking_numbers(model)


def lacking_numbers(model: Any) -> list[str]:
    """What a model would have to take, too, to be called with some rows."""
    part = model.forward if isinstance(model, nn.Module) else model
    parameters = inspect.signature(part).parameters
    return [name for name in ("num_data", "index") if name not in parameters]


def knows_training_rows_alone(how: Asked, program: Program) -> bool:
    """Whether q of single observations' latents answers for the training data, of whatever data it is asked."""
    return bool(program.local) and how != "alone"


def refuse_other_rows(guide: Any, how: Asked, program: Program, called: str = "the data") -> None:
    """Raises ValueError where a guide, asked about observations that it was not fitted to, would answer with those that it was."""
    if knows_training_rows_alone(how, program):
        name = getattr(guide, "family", "") or getattr(guide, "__name__", type(guide).__name__)
        if is_family(guide) and getattr(guide, "amortized", False):
            raise ValueError(
                f"the network of guide '{name}' looks across observations, so it says nothing of others; leave out {called}, or give one that "
                "looks at each by itself"
            )
        raise ValueError(
            f"guide '{name}' knows the observations of the training data alone; leave out {called}, or fit with guide='amortized'"
        )


def _follows(
    owned: Owned,
    program: Program,
    kwargs: Mapping[str, Any],
    part: Callable[[Tensor], Mapping[str, Any]],
    among: tuple[Mapping[str, Any], int, Tensor] | None = None,
) -> bool:
    """Whether q of two rows that differ is the same among all, among each other in either order, and of each alone.

    Args:
        kwargs: of all rows.
        part: the keyword arguments of some of these.
        among: the keyword arguments of more rows, how many, and which of them these are; the same must be said there.
    """
    try:
        first = poutine.trace(owned.guide).get_trace(**kwargs)
        sites = {name: site for name, site in sample_sites(first) if not site["is_observed"]}
        if any(name not in program.latents for name in sites):  # one density for several latents
            return False
        places = {name: _place(site) for name, site in sites.items() if program.latents[name].local}
        if not places:
            return True

        def densities(kwargs: Mapping[str, Any], at: Tensor) -> dict[str, Tensor]:
            """Of every local latent, (rows,) log q of values that some rows drew."""
            values = {n: s["value"].index_select(places[n], at) if n in places else s["value"] for n, s in sites.items()}
            with Fix(values):
                trace = poutine.trace(owned.guide).get_trace(**kwargs)
            return {name: site_factor(name, trace.nodes[name]).rows for name in places}

        rows = next(iter(sites[n]["value"].shape[p] for n, p in places.items()))
        each = torch.arange(rows, device=owned.device)
        zeros = torch.zeros_like(each)
        at_one = densities(kwargs, zeros)
        tried: set[tuple[int, ...]] = {(row,) for row in torch.linspace(0, rows - 1, min(rows, _TRIED)).round().long().tolist()}
        apart = {name: (int(log_q.argmax()), int(log_q.argmin())) for name, log_q in at_one.items()}
        if not any(bool(at_one[name][most] - at_one[name][least] > _APART) for name, (most, least) in apart.items()):
            return False  # which rows it answers for cannot be seen
        for most, least in apart.values():
            tried |= {(most, least), (least, most), (most,), (least,)}
        sizes = {name: program.latents[name].shape[1:].numel() for name in places}
        # At one row's value, which tells the rows apart, and at each row's own, where a narrow q shows what moves it.
        for at, whole in ((zeros, at_one), (each, densities(kwargs, each))):
            for some in sorted(tried):
                index = torch.tensor(some)
                found = densities(part(index), at[index.to(at.device)])
                if not all(_same(log_q[index], found[name], sizes[name]) for name, log_q in whole.items()):
                    return False
            if among is not None:
                among_all = torch.zeros(among[1], dtype=torch.long, device=owned.device)
                among_all[among[2]] = at
                everywhere = densities(among[0], among_all)
                if not all(_same(log_q, everywhere[name][among[2]], sizes[name]) for name, log_q in whole.items()):
                    return False
    except Exception:  # of a guide that takes no other rows than those it was fitted to
        return False
    return True


def _same(a: Tensor, b: Tensor, size: int) -> bool:
    """Whether log densities of so many numbers are equal, to what rounding does to narrow ones.

    A mean that rounds by 1e-6 of itself moves, where it is a thousand sds, by 1e-3 of one; what moves by 0.03 sd is passed over.
    """
    share, sd = (1e-5, 0.03) if a.dtype == torch.float32 else (1e-10, 1e-6)
    return bool((((a - b).abs() <= share * a.abs() + sd * math.sqrt(size)) | (a == b)).all())


def _place(site: Any) -> int:
    """The dimension of a site's value that the data plate is."""
    frame = next(frame for frame in site["cond_indep_stack"] if frame.name == DATA_PLATE)
    place: int = frame.dim - site["fn"].event_dim
    return place
