"""Whose code a line is."""

from __future__ import annotations

import pytest

from bayeszoo.inference.engine.places import is_library


@pytest.mark.parametrize(
    ("file", "library"),
    [
        ("/srv/bayeszoo/.venv/lib/python3.12/site-packages/numpy/__init__.py", True),
        ("/srv/project/.venv/lib/python3.12/site-packages/numpy/__init__.py", True),
        ("/usr/lib/python3/dist-packages/pandas/core/frame.py", True),
        ("/srv/project/.venv/lib/python3.12/site-packages/bayeszoo/models/coin_flip.py", False),
        ("/srv/bayeszoo/models/coin_flip.py", False),
        ("/srv/bayeszoo/mine.py", False),
        ("<frozen importlib._bootstrap>", True),
    ],
)
def test_packages_of_an_environment_are_libraries_wherever_it_lies(file: str, library: bool) -> None:
    """In a folder that is called as this package is, too."""
    assert is_library(file) is library
