"""The house keeps its rules: what may import what, how the folders are named, what no file holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Folders of the package beside `src/bayeszoo`, imported as `bayeszoo.<name>`.
FOLDERS = ("models", "guides", "inference")

#: Where a description of a model comes from, for guides: all that they may take from inference.
DESCRIPTION = {
    "bayeszoo.inference.target.program",
    "bayeszoo.inference.target.start",
    "bayeszoo.inference.target.unconstrained",
}

#: Kinds of files that people write by hand.
WRITTEN = {".py", ".md", ".toml", ".txt", ".cff", ".yml", ".yaml", ".ipynb", ".sh", ""}


def package_files(root: Path) -> dict[str, Path]:
    """Dotted module name -> file, for everything that the package ships."""
    places = {"bayeszoo": root / "src/bayeszoo", "bayeszoo.data": root / "src/bayeszoo/data"}
    places |= {f"bayeszoo.{name}": root / name for name in FOLDERS}
    return {_module(package, p.relative_to(folder)): p for package, folder in places.items() for p in _files(folder, package)}


def _files(folder: Path, package: str) -> list[Path]:
    """Python files of a folder and, outside the front door, whose parts are packages of their own here, of those below it."""
    return sorted(folder.glob("*.py") if package == "bayeszoo" else folder.rglob("*.py"))


def _module(package: str, path: Path) -> str:
    return ".".join([package, *path.with_suffix("").parts])


def imports_of(name: str, path: Path) -> Iterator[str]:
    """Absolute names of a file's imports, those inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(name.split(".")[: -node.level]) if node.level else ""
            if node.module:
                yield ".".join(filter(None, [package, node.module]))
            else:  # from . import x, from .. import models
                yield from (f"{package}.{alias.name}" for alias in node.names)


def ours(root: Path, folder: str) -> list[tuple[str, str]]:
    """(file, imported name) of all imports of our own in one subpackage."""
    return [
        (name, target)
        for name, path in package_files(root).items()
        if name.startswith(f"bayeszoo.{folder}.")
        for target in imports_of(name, path)
        if target.split(".")[0] in ("bayeszoo", *FOLDERS)
    ]


@pytest.mark.parametrize("folder", ["models", "data"])
def test_models_and_data_import_nothing_else_of_ours(root: Path, folder: str) -> None:
    found = ours(root, folder)
    assert found, "the walk found no imports: it looks in the wrong place"
    assert [i for i in found if not i[1].startswith(f"bayeszoo.{folder}.")] == []


def test_inference_imports_neither_models_nor_guides(root: Path) -> None:
    found = ours(root, "inference")
    assert found
    assert [i for i in found if not i[1].startswith("bayeszoo.inference.")] == []


def test_guides_import_the_description_of_a_model_only(root: Path) -> None:
    found = ours(root, "guides")
    assert found
    assert [i for i in found if not (i[1].startswith("bayeszoo.guides.") or i[1] in DESCRIPTION)] == []


def test_notebooks_and_benchmarks_use_the_public_names_only(root: Path) -> None:
    """`import bayeszoo as bz`, or a public subpackage: the modules inside are nobody's business."""
    public = {
        "bayeszoo",
        "bayeszoo.data",
        "bayeszoo.models",
        "bayeszoo.guides",
        "bayeszoo.inference",
        "bayeszoo.plots",
    }
    for folder in ("notebooks", "benchmarks"):
        for path in sorted((root / folder).glob("**/*.py")):
            names = set(imports_of(f"{folder}.{path.stem}", path))
            used = {n for n in names if n.split(".")[0] in ("bayeszoo", *FOLDERS)}
            assert used <= public, f"{path.relative_to(root)} reaches inside: {', '.join(sorted(used - public))}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_plain_import_from_the_root_names_the_right_package(root: Path, folder: str) -> None:
    command = [sys.executable, "-c", f"import {folder}"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"import bayeszoo.{folder}" in last


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_for_type_checkers_are_relative(root: Path, folder: str) -> None:
    link = root / "src/bayeszoo" / folder
    if not link.is_symlink():
        pytest.skip("this copy of the repository came without links; only type checkers and editors need them")
    assert str(link.readlink()) == f"../../{folder}"
    assert link.resolve() == root / folder


def tracked_files(root: Path) -> list[Path]:
    """Files in git, or all that are not built where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True
    )
    if listed.returncode == 0:
        paths = [root / name for name in listed.stdout.decode().split("\0") if name]
    else:
        skipped = {".venv", "build", "dist", "demo", "results", "__pycache__"}
        paths = [p for p in root.rglob("*") if not skipped & set(p.relative_to(root).parts)]
    return [p for p in paths if p.is_file() and not p.is_symlink() and p.suffix in WRITTEN]


def test_no_file_names_a_machine_or_leaves_work_open(root: Path) -> None:
    """Absolute home or work folders run on one machine only; an open end belongs in an issue."""
    homes = re.compile(r"(?<![\w.:/])/(?:home|Users|root|work|tmp|mnt|opt)/[A-Za-z0-9_.-]+")
    open_ends = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    files = tracked_files(root)
    assert len(files) > 50
    found = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if '"image/png": "' in line:  # a notebook's picture, whose letters mean nothing
                continue
            if homes.search(line) or open_ends.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_constraints_are_names_and_versions(root: Path) -> None:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 20
    assert [p for p in pins if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][A-Za-z0-9.!+]*", p)] == []


def test_everything_the_project_needs_is_constrained(root: Path) -> None:
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["notebooks"],
        *project["dependency-groups"]["dev"],
    ]
    names = {re.split(r"[\[<>=!~ ;]", text)[0] for text in needed}
    pinned = {line.split("==")[0] for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    assert names <= pinned


def test_one_version_everywhere(root: Path) -> None:
    import tomllib

    import bayeszoo

    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert bayeszoo.__version__ == version
    assert f"## [{version}]" in (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^version: {re.escape(version)}$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.M)
