"""The command line: `python -m benchmarks.papers uci`, `python -m benchmarks.papers labels`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Protocol

from . import early_exit, labels, m2_mnist, mean_field_mnist, out_of_domain, sparse_mnist, uci, vae_mnist

HERE = Path(__file__).resolve().parents[1] / "results"


class Benchmark(Protocol):
    """What a module of this folder has to offer: what it measures is the first line of its docstring."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the benchmark's own options."""
        ...

    def main(self, asked: argparse.Namespace, out: Path) -> None:
        """Measures, and writes Markdown, JSON and a picture into the folder `out`."""
        ...


#: A new benchmark is a new module and one line here.
BENCHMARKS: dict[str, Benchmark] = {
    "uci": uci,
    "sparse_mnist": sparse_mnist,
    "mean_field_mnist": mean_field_mnist,
    "vae_mnist": vae_mnist,
    "out_of_domain": out_of_domain,
    "m2_mnist": m2_mnist,
    "labels": labels,
    "early_exit": early_exit,
}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in BENCHMARKS.items():
        line = (module.__doc__ or name).splitlines()[0]
        own = commands.add_parser(name, help=line, description=line)
        own.add_argument("--out", type=Path, default=HERE, help="folder of the results (default benchmarks/results)")
        module.add_arguments(own)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Measures, writes, and says where."""
    asked = arguments(given)
    BENCHMARKS[asked.command].main(asked, asked.out)
    print(f"results in {asked.out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
