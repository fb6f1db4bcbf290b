"""The benchmarks' command line: `python -m benchmarks [compare | growth | memory | reference]`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from . import compare, growth, machine, memory, plots, reference, results
from .cases import CASES
from .contestants import CONTESTANTS

HERE = Path(__file__).resolve().parent / "results"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        default="compare",
        choices=["compare", "growth", "memory", "reference"],
        help="compare: beside the peers (default); growth: particles, latents, rows; memory: a long run; "
        "reference: the long runs behind the best losses",
    )
    parser.add_argument("--only", help=f"cases, by commas: {', '.join(CASES)}; for growth, axes: {', '.join(growth.AXES)}")
    parser.add_argument("--contestants", help=f"by commas: {', '.join(CONTESTANTS)}")
    parser.add_argument("--quick", action="store_true", help="one start, three short repetitions: a look, not a measurement")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of every library (default 1)")
    parser.add_argument("--starts", type=int, help="fresh processes, cold and warm, of each contestant (default 3)")
    parser.add_argument("--repetitions", type=int, help="of the steady loop (default 7)")
    parser.add_argument("--steps", type=int, default=100_000, help="of the memory run")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results (default benchmarks/results)")
    return parser.parse_args(given)


def chosen(given: str | None, known: list[str], what: str, default: list[str] | None = None) -> list[str]:
    """The names that were asked for, in the known order.

    Raises:
        SystemExit: naming one that is not known.
    """
    if given is None:
        return default or known
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown {what} '{unknown[0]}'; choose from {', '.join(known)}")
    return [name for name in known if name in names]


def main(given: list[str] | None = None) -> None:
    """Measures, writes, and says where."""
    asked = arguments(given)
    if asked.threads < 1:
        raise SystemExit(f"--threads must be at least 1, got {asked.threads}")
    about: dict[str, Any] = {"machine": machine.describe(asked.device, asked.threads), "quick": asked.quick}
    note = "A quick look: too few repetitions to quote.\n\n" if asked.quick else ""
    out: Path = asked.out
    if asked.command == "reference":
        reference.main(chosen(asked.only, list(CASES), "case"))
        return
    if asked.command == "growth":
        name = "growth"

        def keep_growth(curves: dict[str, Any]) -> None:
            body = f"{note}{growth.render(curves)}\n\n![time of one step](growth.png)"
            results.write(out, name, about | {"curves": curves}, "How the cost of a step grows", body)
            plots.growth(curves, out / f"{name}.png")

        axes = chosen(asked.only, list(growth.AXES), "axis")
        length, repetitions, patience = (0.1, 1, 60.0) if asked.quick else (0.3, 3, 180.0)
        growth.run(axes, asked.threads, length, repetitions, patience, keep_growth)
    elif asked.command == "memory":
        name = "memory"
        runs = memory.run(chosen(asked.only, list(CASES), "case", ["coin", "linear-batch", "bnn"]), asked.steps, asked.threads)
        body = f"{memory.render(runs)}\n\n![resident memory](memory.png)"
        results.write(out, name, about | {"runs": runs}, "Memory over many steps", body)
        plots.memory(runs, out / f"{name}.png")
    else:
        name = asked.device
        plan = compare.Plan(device=asked.device, threads=asked.threads)
        if asked.quick:
            plan = dataclasses.replace(plan, starts=1, repetitions=3, seconds=0.2)
        plan = dataclasses.replace(plan, starts=asked.starts or plan.starts, repetitions=asked.repetitions or plan.repetitions)

        def keep(cases: dict[str, Any]) -> None:
            whole = about | {"cases": cases}
            body = f"{note}{results.comparison(whole)}\n\n![time of one step]({name}.png)"
            results.write(out, name, whole, f"Speed on {asked.device.upper()}", body)
            plots.comparison(whole, out / f"{name}.png")

        compare.run(
            chosen(asked.only, list(CASES), "case"), chosen(asked.contestants, list(CONTESTANTS), "contestant"), plan, keep
        )
    print(f"results: {name}.md, {name}.json and {name}.png in {out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
