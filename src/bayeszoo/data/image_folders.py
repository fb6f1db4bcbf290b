"""Where the IDX files of a published image set are: a folder that people name, a system package's, or torchvision's.

The first place that has a file of the wanted split counts. Only the last one uses the network: torchvision, an optional
extra, downloads into its folder in torch's cache (`$TORCH_HOME`, by default `~/.cache/torch`), where the files stay.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

FOLDER_VARIABLE = "BAYESZOO_DATA"

_PREFIX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Source:
    """The places of one image set.

    Attributes:
        name: its name in `load`, and of its folder in `$BAYESZOO_DATA`.
        title: its name in messages.
        torchvision_class: the class in `torchvision.datasets`, which also names torchvision's folder.
        system_folder: where a system package puts it, None if there is no such package.
        system_package: the Debian package.
    """

    name: str
    title: str
    torchvision_class: str
    system_folder: Path | None = None
    system_package: str = ""


def find_files(source: Source, split: str, folder: str | Path | None = None) -> tuple[Path, Path]:
    """Returns the files of images and labels of one split, downloading them as the last resort.

    Args:
        source: the image set.
        split: "train" or "test".
        folder: the only place to look at, if given.

    Raises:
        FileNotFoundError: one sentence that says which folders were looked at, what to set and what to install.
    """
    if folder is not None:
        return _in_folder(Path(folder).expanduser(), split)
    named = os.environ.get(FOLDER_VARIABLE)
    places = [Path(named).expanduser() / source.name] if named else []
    places += [source.system_folder] if source.system_folder else []
    for place in places:
        # Half a split counts too: the missing file is then named, instead of another copy being taken silently.
        if any(_find(place, stem) for stem in _stems(split)):
            return _in_folder(place, split)
    root = torchvision_root()
    cache = root / source.torchvision_class / "raw"
    # Here half a split is a download that was broken off, and torchvision goes on with it.
    failure = "" if all((cache / stem).is_file() for stem in _stems(split)) else _download(source, root, split)
    if not failure:
        return _in_folder(cache, split)
    unset = "" if named else f" ({FOLDER_VARIABLE} is not set)"
    package = f", install Debian's package {source.system_package}" if source.system_package else ""
    raise FileNotFoundError(
        f"{source.title}'s {split} split is in none of the folders {', '.join(f"'{place}'" for place in [*places, cache])}"
        f"{unset}, and {failure}; put its IDX files into a folder and give folder=..., or set {FOLDER_VARIABLE} to the "
        f"folder that holds '{source.name}'{package}, or install torchvision (pip install 'bayeszoo[images]') where there "
        "is a network"
    )


def torchvision_root() -> Path:
    """The folder in torch's cache that torchvision's data sets are downloaded into, as a real path."""
    return (Path(torch.hub.get_dir()).expanduser().parent / "datasets" / "vision").resolve()


def _stems(split: str) -> tuple[str, str]:
    return f"{_PREFIX[split]}-images-idx3-ubyte", f"{_PREFIX[split]}-labels-idx1-ubyte"


def _find(folder: Path, stem: str) -> Path | None:
    """The file of that name, unpacked or not; some copies write "train-images.idx3-ubyte"."""
    spellings = (stem, stem.replace("-idx", ".idx"))
    paths = (folder / f"{spelling}{ending}" for ending in ("", ".gz") for spelling in spellings)
    return next((path for path in paths if path.is_file()), None)


def _in_folder(folder: Path, split: str) -> tuple[Path, Path]:
    images, labels = (_find(folder, stem) for stem in _stems(split))
    if images is None or labels is None:
        missing = [stem for stem, path in zip(_stems(split), (images, labels), strict=True) if path is None]
        what = "there is no folder" if not folder.is_dir() else f"there is no {' and no '.join(missing)} (.gz or not) in"
        raise FileNotFoundError(f"{what} '{folder}'; give the folder that holds {' and '.join(_stems(split))} (.gz or not)")
    return images, labels


def _download(source: Source, root: Path, split: str) -> str:
    """Lets torchvision download all files of the set; returns why it could not, as half a sentence, else ""."""
    try:
        from torchvision import datasets
    except ImportError as error:
        if error.name == "torchvision":
            return "torchvision, which downloads it, is not installed"
        return f"torchvision cannot be imported ({_brief(error)})"
    except RuntimeError as error:
        # torchvision's compiled part refuses a torch that it was not built for.
        return f"torchvision cannot be imported ({_brief(error)})"
    try:
        # torchvision prints its progress, and standard output may be a command's JSON.
        with contextlib.redirect_stdout(sys.stderr):
            getattr(datasets, source.torchvision_class)(str(root), train=split == "train", download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        return f"torchvision could not download it into '{root}' ({_brief(error)})"
    return ""


def _brief(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
