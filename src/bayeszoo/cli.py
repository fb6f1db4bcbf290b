"""The command line: `bayeszoo list | fit | compare | demo`.

Wrong input ends in one sentence on stderr and exit code 2, a fit that broke down in exit code 1.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import __version__

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="bayeszoo",
    help="Models of the lecture Bayesian Deep Learning in Pyro, fitted by variational inference.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model; see bayeszoo list.")]
DataName = Annotated[str | None, typer.Option("--data", help="Name of a data set, or a CSV file; by default the model's own.")]
Target = Annotated[str | None, typer.Option(help="Column of the CSV file to predict.")]
Steps = Annotated[int | None, typer.Option(help="Number of updates; by default until convergence.")]
Seed = Annotated[int, typer.Option(help="Same seed and device, same losses.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ..., or auto.")]
Restarts = Annotated[int, typer.Option(help="Independent fits; they become ArviZ chains.")]
Compile = Annotated[str, typer.Option("--compile", metavar="auto|yes|no", help="Whether the steps run compiled.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what the folder already holds.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bayeszoo {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the program itself."""


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turns the errors that people can mend into a sentence on stderr and an exit code."""
    from .inference import NonFiniteError

    try:
        yield
    except NonFiniteError as error:
        typer.echo(f"bayeszoo: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        # The system's own errors carry a reason and a file, ours a sentence.
        reason = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
        typer.echo(f"bayeszoo: {reason}", err=True)
        raise typer.Exit(2) from None
    except ValueError as error:
        typer.echo(f"bayeszoo: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("bayeszoo: interrupted", err=True)
        raise typer.Exit(130) from None


@app.command("list")
def list_() -> None:
    """List models, guides and data sets."""
    from rich.table import Table

    from . import data, guides
    from .catalog import ENTRIES

    console = _console()
    models = Table("model", "matching guide", "shown with", "story", box=None, header_style="bold")
    for entry in ENTRIES.values():
        models.add_row(entry.name, entry.guide, entry.dataset[0], entry.summary)
    families = Table("guide", "objective", "what it is", box=None, header_style="bold")
    for family in guides.FAMILIES.values():
        families.add_row(family.name, family.objective, family.summary)
    sets = Table("data set", "what it is", box=None, header_style="bold")
    for name, line in data.available().items():
        sets.add_row(name, line)
    for table in (models, families, sets):
        console.print(table)
        console.print()


@app.command("fit")
def fit_(
    model: ModelName,
    guide: Annotated[str | None, typer.Option(help="Name of a guide; by default the model's matching one.")] = None,
    data: DataName = None,
    target: Target = None,
    steps: Steps = None,
    seed: Seed = 0,
    device: Device = "auto",
    restarts: Restarts = 1,
    compile: Compile = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for posterior.nc, fit.json, the checkpoint and figures.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """Fit a model to data."""
    with one_sentence():
        from . import outputs
        from .catalog import entry
        from .fitting import fit
        from .inference import NonFiniteError

        found = entry(model)
        _check_guide(guide)
        mode = _compile_mode(compile)
        if out is not None:
            _draw_without_screen()
            _forced(lambda: outputs.check(out, overwrite=force))
        observed = read_data(model, data, target)
        try:
            with _told_if_not_compiled(quiet):
                result = fit(
                    found.model(observed),
                    observed,
                    guide=guide,
                    steps=steps,
                    seed=seed,
                    device=device,
                    restarts=restarts,
                    compile=mode,
                    progress=not (quiet or as_json),
                )
        except NonFiniteError as error:
            if out is not None and error.fit is not None:
                error.fit.save(out, overwrite=force)
                raise NonFiniteError(f"{error}; the last finite state is in '{out}'") from None
            raise
        files = [] if out is None else outputs.write(result, out, overwrite=force)
        if as_json:
            described = outputs.record(result)
            typer.echo(json.dumps(described if out is None else {**described, "out": str(out)}, allow_nan=False))
        elif not quiet:
            _show(result)
            for path in files:
                typer.echo(f"wrote {path}")


@app.command("compare")
def compare_(
    model: ModelName,
    guides: Annotated[str, typer.Option(help="Names of guides, separated by commas.")],
    data: DataName = None,
    target: Target = None,
    steps: Steps = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fit several guides to the same model and data, side by side."""
    with one_sentence():
        from .catalog import entry
        from .comparing import compare

        found = entry(model)
        observed = read_data(model, data, target)
        names = [name.strip() for name in guides.split(",") if name.strip()]
        result = compare(
            found.model(observed),
            observed,
            names,
            steps=steps,
            seed=seed,
            device=device,
            progress=not (quiet or as_json),
        )
        if as_json:
            rows = json.loads(result.table.to_json(orient="index", double_precision=15))
            typer.echo(json.dumps({"model": model, "data": observed.name, "seed": seed, "guides": rows}))
        elif not quiet:
            typer.echo(str(result))


@app.command("demo")
def demo_(
    out: Annotated[Path, typer.Option(help="Folder for the figures and fits.")] = Path("demo"),
    force: Force = False,
) -> None:
    """Fit the real coin data and a real regression, check them against the exact answers, draw figures."""
    with one_sentence():
        from .demo import run

        _draw_without_screen()
        run(out, console=_console(), overwrite=force)


def read_data(model: str, data: str | None, target: str | None) -> Any:
    """The data set of that name, or the table in that file, standardised where the model is a regression.

    Raises:
        ValueError, FileNotFoundError: one sentence.
    """
    from . import data as sets
    from .catalog import default_data, entry

    if data is None or data in sets.available():
        if target is not None:
            raise ValueError(
                f"--target names a column of a CSV file, and '{data or model}' is no file; give --data "
                "FILE.csv, "
                "or leave it out"
            )
        return default_data(model) if data is None else entry(model).data(sets.load(data))
    if not data.lower().endswith(".csv") and not Path(data).is_file():
        sets.load(data)  # raises, naming the nearest names
    if target is None:
        raise ValueError(f"a CSV file needs --target COLUMN, the column of '{data}' that the model explains")
    return _counts(data, target) if _is_coin(model) else entry(model).data(sets.from_csv(data, target=target, standardize=True))


def _is_coin(model: str) -> bool:
    """Whether the model explains counts by `total_count` instead of a target by columns."""
    import inspect

    from .catalog import entry

    return "total_count" in inspect.signature(getattr(entry(model).build, "forward")).parameters  # noqa: B009


def _counts(path: str, target: str) -> Any:
    """Flips of a CSV file: the target column, and `total_count` where the file has such a column."""
    import pandas as pd

    from . import data as sets

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{path}'; give the path of a CSV file with a header line")
    frame = pd.read_csv(path)
    if target not in frame.columns:
        raise ValueError(f"'{path}' has no column '{target}'; it has {', '.join(map(str, frame.columns))}")
    columns = [name for name in ("total_count", target) if name in frame.columns]
    # The target stands among the features here, so that one reader checks every number of both columns.
    table = sets.from_frame(frame[columns].assign(_unused=0.0), target="_unused", features=columns)
    x = table.inputs["x"]
    inputs = {"total_count": x[:, 0]} if len(columns) == 2 else {}
    return sets.Data(inputs, x[:, -1], name=Path(path).stem, origin=path, target_name=target)


def _show(result: Any) -> None:
    """The fit, what ran it, the verdict, then a table of means and sds."""
    typer.echo(str(result))
    seconds = result.timings
    compiling = f", {seconds['compile']:.1f} s of compiling" if result.engine == "compiled" else ""
    typer.echo(f"engine {result.engine}: {seconds['steps']:.1f} s of steps{compiling}")
    typer.echo(str(result.diagnose()))


def _check_guide(name: str | None) -> None:
    if name is not None:
        from . import guides

        guides.checked_name(name)


def _compile_mode(word: str) -> Literal["auto"] | bool:
    """`fit`'s argument for the command line's word."""
    if word == "auto":
        return "auto"
    if word not in ("yes", "no"):
        raise ValueError(f"--compile must be auto, yes or no, got '{word}'")
    return word == "yes"


@contextlib.contextmanager
def _told_if_not_compiled(quiet: bool) -> Iterator[None]:
    """A fit that falls back to the eager engine says so in one line on stderr, without the library's own line of code."""
    from .inference import NotCompiledWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "always", NotCompiledWarning)
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, NotCompiledWarning):
                typer.echo(f"bayeszoo: {message}", err=True)
            else:
                show(message, category, *where, **options)

        warnings.showwarning = tell
        yield


def _forced(check: Any) -> None:
    """The library's sentence says overwrite=True where the command line says --force."""
    try:
        check()
    except FileExistsError as error:
        raise FileExistsError(
            str(error).replace("pass overwrite=True", "pass --force").replace("force it", "pass --force")
        ) from None


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _draw_without_screen() -> None:
    import matplotlib

    matplotlib.use("Agg")


def main() -> None:
    """The entry point."""
    app()
