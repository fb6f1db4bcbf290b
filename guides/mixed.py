"""Several families in one guide: `{"weights": "mean_field", "z": "exact"}`.

Keys are `weights` (all continuous latents, one family) and the names of discrete sites, each with a word of `discrete`. In
words of one line, as settings and the command line hold it: `weights=mean_field, z=exact`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro.nn import PyroModule

from ..inference.target.program import BoundData, describe
from .discrete import WORDS, DiscreteGuide

CONTINUOUS = "weights"


class Nothing(PyroModule):
    """The guide of a model whose latents are all summed out: its parameters are trained by the exact evidence."""

    family = "exact"
    objective = "elbo"

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to draw."""


def in_words(parts: Mapping[str, str]) -> str:
    """Return the parts as one line."""
    return ", ".join(f"{name}={family}" for name, family in parts.items())


def is_mixed(name: str) -> bool:
    """Whether a guide's name is a line of parts."""
    return "=" in name


def parse(name: str) -> dict[str, str]:
    """Return the parts of such a line.

    Raises:
        ValueError: it is not one.
    """
    parts: dict[str, str] = {}
    for piece in name.split(","):
        key, equals, family = (p.strip() for p in piece.partition("="))
        if not (key and equals and family):
            raise ValueError(
                f"a guide of parts is written 'weights=mean_field, z=exact', and '{piece.strip()}' is no part of one"
            )
        parts[key] = family
    return parts


def build(
    parts: Mapping[str, str], model: Callable[..., Any], data: BoundData, family: Callable[[str], Any], **options: Any
) -> Any:
    """Return the guide of several families.

    Args:
        parts: `weights` and names of discrete sites -> families.
        family: name -> builder of the continuous latents' guide.
        options: of the continuous family; `hidden` is the width of networks for discrete sites, `temperature` that of relaxed draws.

    Raises:
        ValueError: a part is missing, or for nothing that the model has.
    """
    program = describe(model, data)
    discrete, continuous = list(program.discrete), list(program.continuous)
    for name in parts:
        if name != CONTINUOUS and name not in discrete:
            have = ", ".join([*([CONTINUOUS] if continuous else []), *discrete]) or "none"
            raise ValueError(
                f"the guide has a part for '{name}', and the model has no discrete latent of that name; its parts are {have}"
            )
    if CONTINUOUS in parts and not continuous:
        raise ValueError(
            f"the guide has a part for '{CONTINUOUS}', and the model has no continuous latent: its weights are points, which are trained "
            "without a guide; leave the part out, or give the model a prior"
        )
    if continuous and CONTINUOUS not in parts:
        raise ValueError(
            f"the model's continuous latents ({', '.join(continuous[:3])}) need a family: add '{CONTINUOUS}', such as 'mean_field'"
        )
    words = {name: parts.get(name, "exact") for name in discrete}
    for name, word in words.items():
        if word not in WORDS:
            raise ValueError(f"unknown guide '{word}' for the discrete latent '{name}'; choose one of {', '.join(WORDS)}")
    builder = family(parts[CONTINUOUS]) if continuous else None
    if all(word == "exact" for word in words.values()):
        if builder is None and options:
            raise ValueError(f"guide 'exact' has no options, and {next(iter(options))!r} was given; leave it out")
        return Nothing() if builder is None else builder(model, data, **options)
    if any(word == "exact" for word in words.values()):
        raise ValueError(
            "some discrete latents are summed out of the model and others are in the guide; make all 'exact', or none"
        )
    return DiscreteGuide(model, data, builder, words, **options)
