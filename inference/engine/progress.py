"""The progress bar of a fit, with rich; silent where the output is not a terminal or a notebook."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def progress_callback(show: bool, guide: str, total: int | None, restart: int, restarts: int) -> Iterator[list[Any]]:
    """Yields the callbacks that draw the bar: none, or one."""
    if not show or not (sys.stderr.isatty() or _in_notebook()):
        yield []
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    label = f"fitting {guide}" + (f", restart {restart + 1} of {restarts}" if restarts > 1 else "")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g} nats"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(label, total=total, loss=float("nan"))

        def callback(state: Any) -> None:
            if state.step - bar.tasks[0].completed >= 20 or state.step == total:
                bar.update(task, completed=state.step, loss=state.loss)

        yield [callback]
        bar.update(task, total=bar.tasks[0].completed or total)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})
