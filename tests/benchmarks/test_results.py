"""What the harness makes of its measurements, and of a contestant that cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import best, growth, memory, results
from benchmarks.cases import CASES
from benchmarks.contestants import Training
from benchmarks.process import NotRun, Process, environment, without_paths
from benchmarks.worker import accurate_after, settle


def start(accurate: float | None, compiling: float | None) -> dict[str, Any]:
    return {"accurate": accurate, "compiling": compiling, "memory": 700.0, "device_memory": None}


def whole() -> dict[str, Any]:
    cells = {
        "pyro": {"step": 1e-3, "cold": start(2.0, None), "warm": {}, "cores": 1.0},
        "torch": {"error": "RuntimeError: no | such thing " + "x" * 200},
        "compiled": {"step": 2e-5, "cold": start(8.0, 7.0), "warm": start(None, 1.5), "cores": None},
    }
    case = {"title": "coin flip", "best": 65.5, "tolerance": 0.2, "window": 100, "steps": 1000, "learning_rate": 0.05}
    return {"machine": {"processor": "P | 2 cores", "torch": "2"}, "cases": {"coin": case | {"contestants": cells}}}


def rows_below(text: str, title: str) -> list[str]:
    """Cells of the first row of the table under a title."""
    row = text.split(f"## {title}")[1].split("| --- |\n")[1].splitlines()[0]
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def test_tables_give_multiples_and_reasons(tmp_path: Path) -> None:
    text = results.comparison(whole())
    times = rows_below(text, "Time of one step")
    assert times[:2] == ["coin flip", "1 ms (50x)"]
    assert times[2].startswith("not run: RuntimeError: no / such thing")
    assert len(times[2]) <= results.LONGEST + len("not run: ")
    assert times[3] == "20 µs"
    assert rows_below(text, "Time until accurate, cold")[1] == "2 s (0.25x)"
    assert rows_below(text, "Time until accurate, warm")[3] == "not reached"
    assert rows_below(text, "Compiling, cold / warm")[3] == "7 s / 1.5 s"
    results.write(tmp_path, "cpu", whole(), "Speed", text)
    assert json.loads((tmp_path / "cpu.json").read_text())["cases"]["coin"]["title"] == "coin flip"
    assert (tmp_path / "cpu.md").read_text().startswith("# Speed\n")


def test_growth_and_memory_render_what_was_not_run() -> None:
    points = [{"value": 1, "step": 1e-4}, {"value": 64, "step": 4e-4}, {"value": 99, "error": "took longer than 60 s"}]
    curve = {
        "label": "particles a step",
        "values": [1, 64, 99],
        "lines": [{"what": "coin", "engine": "eager", "points": points}],
    }
    assert "| coin | eager | 100 µs (1x) | 400 µs (4x) | not run: took longer than 60 s |" in growth.render(
        {"particles": curve}
    )
    rising = [(0.1 * k, 100.0 + 0.1 * k) for k in range(100)]
    # from the median of the second tenth to that of the last but one: 70 samples of 0.1 MiB
    assert memory.grown(rising) == pytest.approx(7.0)
    runs = {"coin": {"steps": 10, "samples": rising, "grown": 7.0}, "bnn": {"error": "no"}}
    assert "| bnn | not run: no |" in memory.render(runs)


def test_accuracy_is_the_running_means() -> None:
    losses = [5.0, 1.0, 5.0, 2.0, 2.0, 2.0]
    assert accurate_after(losses, target=2.5, window=2) == 5
    assert accurate_after(losses, target=1.0, window=2) is None
    assert accurate_after(losses[:1], target=9.0, window=2) is None


def test_the_steps_of_a_repetition_were_run_last() -> None:
    """Also where the time of a step goes up and down for ever."""
    tried: list[int] = []

    class Unsteady:
        def train(self, steps: int, seed: int) -> Training:
            tried.append(steps)
            return Training(0.0, None, (1e-4 if len(tried) % 2 else 3e-4) * steps, steps)

        def device_memory(self) -> float | None:
            return None

    assert settle(Unsteady(), seconds=1.0) == tried[-1]


@pytest.mark.parametrize(
    ("each", "hiccup", "expected"), [(1e-4, 0.0, 10_000), (1e-4, 5.0, 10_000), (1e-7, 0.0, 200_000), (0.5, 0.0, 60)]
)
def test_a_repetition_takes_the_seconds_it_was_given(each: float, hiccup: float, expected: int) -> None:
    """Also where the first run waited for something: a compiler, another process."""
    tried: list[int] = []

    class Steady:
        def train(self, steps: int, seed: int) -> Training:
            tried.append(steps)
            return Training(0.0, None, each * steps + hiccup * (len(tried) == 1), steps)

        def device_memory(self) -> float | None:
            return None

    assert settle(Steady(), seconds=1.0) == pytest.approx(expected, rel=0.01)
    assert tried[-1] == pytest.approx(expected, rel=0.01)  # what compiles for a number of steps has compiled for this one
    assert len(tried) < 8


def test_reasons_hold_no_paths() -> None:
    folder = "/".join(["", "home", "someone", "lib", "torch.py"])
    assert without_paths(f"OSError: {folder} is gone (ratio 1/2)") == "OSError: torch.py is gone (ratio 1/2)"


def test_every_library_is_held_to_the_threads(tmp_path: Path) -> None:
    variables = environment(1, tmp_path)
    assert {variables[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC")} == {"1"}
    assert variables["TORCHINDUCTOR_CACHE_DIR"] != environment(1, None).get("TORCHINDUCTOR_CACHE_DIR")


def test_a_worker_answers_what_it_cannot_do_with_a_reason() -> None:
    with Process({"do": "ready"}, threads=1, patience=60) as process:
        with pytest.raises(NotRun, match="KeyError: 'nothing'"):
            process.ask(do="start", contestant="torch", case="nothing", device="cpu")
        assert process.ask(do="ready") == {}
    with pytest.raises(NotRun, match="process ended"):
        process.ask(do="ready")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SystemExit, match="unknown case 'coyn'; choose from coin"):
        command.main(["--only", "coyn"])
    with pytest.raises(SystemExit, match="--threads must be at least 1"):
        command.main(["--threads", "0"])


def test_closed_forms() -> None:
    # heads 1 of 2: log evidence of a uniform prior is log B(2, 2) = -log 6, and a normal in log odds is at best a little worse
    import math

    import numpy as np

    gap = best.coin({"x": np.array([0.0, 1.0])}) - math.log(6)
    assert 0 < gap < 0.01
    # one column: mean field is exact, so the loss is -log evidence; y ~ N(0, 0.25 + 1) for a single row x = 1
    loss = best.linear({"x": np.ones((1, 1)), "y": np.array([0.7])})
    assert loss == pytest.approx(0.5 * (math.log(2 * math.pi * 1.25) + 0.49 / 1.25), rel=1e-12)


def test_cases_are_reachable_and_seeded() -> None:
    for case in CASES.values():
        if case.name in ("linear-large", "vae"):
            continue
        a, b = case.arrays(), case.arrays()
        assert all((a[k] == b[k]).all() for k in a)
        assert case.observed in a
        assert case.window < case.steps
