"""Whose code a line is: the user's, or a library's; and how a message names the user's."""

from __future__ import annotations

import contextlib
import functools
import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import torch

_FRAMEWORKS = tuple(str(Path(p).resolve().parent) for p in (torch.__file__, pyro.__file__, Path(__file__).parent))
_LIBRARIES = (*_FRAMEWORKS, str(Path(sysconfig.get_path("stdlib")).resolve()))
#: The package that a file of an environment belongs to.
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+)")
_FRONT = str(Path(__file__).absolute().parents[2])
_INFERENCE = Path(__file__).parents[1]
#: Where warnings do not point to: the package, wherever its folders lie.
PACKAGE = tuple(str(path) for path in (_INFERENCE, _INFERENCE.parent, _INFERENCE.resolve()))
_OWN_GUIDES = str(Path(__file__).resolve().parents[2] / "guides")


@functools.cache
def is_library(filename: str) -> bool:
    """Whether a file is Python's, an installed package's or ours; our models count as a user's, so that messages can name their lines."""
    if filename.startswith("<"):
        return True
    path = str(Path(filename).resolve())
    if path.startswith(_FRONT) and not path.startswith(str(Path(_FRONT) / "models")):
        return True
    installed = _INSTALLED.findall(path)
    return path.startswith((*_LIBRARIES, _OWN_GUIDES)) or (bool(installed) and installed[-1] != "bayeszoo")


def is_family(guide: Any) -> bool:
    """Whether a guide is of one of this package's families, which keep what they say of themselves; names anyone may give."""
    return type(guide).__module__.startswith(f"{__name__.partition('.')[0]}.guides.")


def place(filename: str, line: int | None) -> str:
    """A line as messages show it."""
    text = linecache.getline(filename, line or 0).strip()
    return f" ({Path(filename).name}, line {line}: {text})"


def here() -> str:
    """The innermost line on the stack that is not a library's."""
    frame = sys._getframe(1)
    while frame is not None:
        if not is_library(frame.f_code.co_filename):
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def asked_by_the_user() -> bool:
    """Whether a call comes from code of the user's, and neither from torch, Pyro or this package nor from an import."""
    frame = sys._getframe(3)  # of who called what stands in the place of a function (`patched`)
    while frame is not None:
        name = frame.f_code.co_filename
        if not is_library(name):
            return True
        if name.startswith((*_FRAMEWORKS, "<frozen importlib")):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


@contextlib.contextmanager
def own_words() -> Iterator[None]:
    """Inside, sentences of this package come out as they were written: Pyro adds a table of shapes to what is raised in a trace."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        first: BaseException = error
        while "Trace Shapes:" in str(first) and first.__cause__ is not None:
            first = first.__cause__
        raised = traceback.extract_tb(first.__traceback__)
        if first is not error and raised and raised[-1].filename.startswith((_FRONT, _OWN_GUIDES)):
            raise first from None
        raise


def explain(error: Exception) -> str:
    """The first line of an exception and the innermost line of the user's that led to it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
    where = place(frames[-1].filename, frames[-1].lineno) if frames else ""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if "value out of a tracing tensor" in text:
        text = "a value is read from a tensor"
    return f"{text}{where}"
