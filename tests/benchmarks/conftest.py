"""The benchmarks are a package at the repository's root, not an installed one."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:  # at the end: nothing at the root may hide an installed package
    sys.path.append(ROOT)
