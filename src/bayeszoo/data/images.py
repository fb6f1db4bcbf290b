"""Labelled grey images from IDX files: MNIST, Fashion-MNIST and people's own.

Images are float32 of shape `(N, 1, H, W)` in [0, 1]: bytes divided by 255, and nothing else, so that a pixel can also
be read as a probability (as the lecture's autoencoders do). Labels are int64 of shape `(N,)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .checks import nearest, texts
from .dataset import Data
from .idx import read_idx
from .image_folders import Source, find_files


@dataclass(frozen=True)
class _ImageSet:
    """A published set of 28 x 28 images in ten classes.

    Attributes:
        source: where its files may lie.
        counts: images of each class, by split; they tell the sets apart, whose files have the same names and shapes.
        class_names: names of the ten classes.
        target_name: what a label is.
        origin: to be cited.
        licence: its licence.
    """

    source: Source
    counts: dict[str, tuple[int, ...]]
    class_names: tuple[str, ...]
    target_name: str
    origin: str
    licence: str


_MNIST = _ImageSet(
    Source("mnist", "MNIST", "MNIST"),
    counts={
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    },
    class_names=tuple(map(str, range(10))),
    target_name="digit",
    origin="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner (1998), Gradient-Based Learning Applied to Document "
    "Recognition, Proceedings of the IEEE 86(11), 2278-2324",
    licence="CC BY-SA 3.0",
)

_FASHION_MNIST = _ImageSet(
    Source(
        "fashion_mnist",
        "Fashion-MNIST",
        "FashionMNIST",
        system_folder=Path("/usr/share/datasets/fashion-mnist"),
        system_package="dataset-fashion-mnist",
    ),
    counts={"train": (6000,) * 10, "test": (1000,) * 10},
    # The labels' names in the paper's table 2, in the spelling of its repository.
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    target_name="article",
    origin="H. Xiao, K. Rasul, R. Vollgraf (2017), Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine "
    "Learning Algorithms, arXiv 1708.07747",
    licence="MIT",
)


def mnist(split: str = "train", folder: str | Path | None = None) -> Data:
    """Handwritten digits, 28 x 28 pixels: 60,000 to learn from, 10,000 to test on.

    Args:
        split: "train" or "test".
        folder: where the IDX files are, compressed or not; by default `$BAYESZOO_DATA/mnist`, then torchvision's
            folder in torch's cache, into which torchvision downloads them as the last resort.

    Returns:
        Data with `x` of shape `(N, 1, 28, 28)`, float32 in [0, 1], and the digit of shape `(N,)`, int64.

    Raises:
        FileNotFoundError: if the files are nowhere and cannot be downloaded.
        ValueError: for an unknown split, and for files that are damaged or not MNIST's.
    """
    return _load(_MNIST, split, folder)


def fashion_mnist(split: str = "train", folder: str | Path | None = None) -> Data:
    """Pictures of clothes, 28 x 28 pixels, in the format of MNIST: 60,000 to learn from, 10,000 to test on.

    Args:
        split: "train" or "test".
        folder: where the IDX files are, compressed or not; by default `$BAYESZOO_DATA/fashion_mnist`, then the folder
            of Debian's package dataset-fashion-mnist, then torchvision's as for `mnist`.

    Returns:
        Data with `x` of shape `(N, 1, 28, 28)`, float32 in [0, 1], and the article of shape `(N,)`, int64.

    Raises:
        FileNotFoundError: if the files are nowhere and cannot be downloaded.
        ValueError: for an unknown split, and for files that are damaged or not Fashion-MNIST's.
    """
    return _load(_FASHION_MNIST, split, folder)


def from_idx(
    images: str | Path,
    labels: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    target_name: str = "class",
    name: str | None = None,
    origin: str | None = None,
    licence: str = "",
    note: str = "",
) -> Data:
    """Reads grey images and their labels from two IDX files, compressed by gzip or not.

    Args:
        images: file of bytes of shape `(N, H, W)`; 0 becomes 0, 255 becomes 1.
        labels: file of integers of shape `(N,)`, from 0 to K - 1.
        class_names: names of the K classes; by default the labels from 0 to the largest, written as texts. Give them
            where a file lacks the last class.
        target_name: what a label is.
        name: name of the data set; by default that of the images' file.
        origin: where it comes from; by default the names of both files.
        licence: its licence.
        note: anything a reader should know.

    Returns:
        Data with `x` of shape `(N, 1, H, W)`, float32 in [0, 1], and the label of shape `(N,)`, int64.

    Raises:
        FileNotFoundError: naming a file that is not there.
        ValueError: one sentence, for a file that is damaged or of another shape or type, for different numbers of images
            and labels, and for labels outside 0..K-1.
    """
    images, labels = Path(images), Path(labels)
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"'{images}' holds {pixels.dtype} values of shape {pixels.shape}, but grey images are bytes of shape (N, H, W); "
            "give the file of the images, or convert others with bz.data.read_idx and bz.data.from_arrays"
        )
    if classes.ndim != 1 or classes.dtype.kind not in "iu":
        raise ValueError(
            f"'{labels}' holds {classes.dtype} values of shape {classes.shape}, but labels are integers of shape (N,); "
            "give the file of the labels"
        )
    if len(pixels) != len(classes):
        raise ValueError(
            f"'{images}' holds {len(pixels):,} images and '{labels}' {len(classes):,} labels, "
            "but each image needs one; give two files that belong together"
        )
    if pixels.size == 0:
        raise ValueError(
            f"'{images}' holds no pixels (shape {pixels.shape}), but at least one image is needed; give another file"
        )
    numbers = torch.from_numpy(classes.astype(np.int64))
    if class_names is None:
        # A file may lack classes, but a number that is far above both a byte and the number of images is no class.
        limit, expected = max(256, len(numbers)), "labels are the classes' numbers, counted from 0"
    else:
        class_names = texts("class_names", class_names)
        limit = len(class_names)
        expected = f"the {limit} class_names stand for 0 to {limit - 1}"
    outside = (numbers < 0) | (numbers >= limit)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"'{labels}' holds the label {int(numbers[row])} in row {row + 1} (rows count from 1), but {expected}; "
            "correct the file, or give class_names with one name for each class"
        )
    names = tuple(map(str, range(int(numbers.max()) + 1))) if class_names is None else tuple(class_names)
    return Data(
        inputs={"x": torch.from_numpy(pixels).unsqueeze(1).to(torch.float32).div_(255.0)},
        observed=numbers,
        name=images.name.split(".")[0] if name is None else name,
        origin=f"{images.name}, {labels.name}" if origin is None else origin,
        licence=licence,
        note=note,
        target_name=target_name,
        num_classes=len(names),
        class_names=names,
    )


def _load(which: _ImageSet, split: str, folder: str | Path | None) -> Data:
    """Reads one split and checks that it is what its name says."""
    if split not in which.counts:
        raise ValueError(
            f"{which.source.title} has no split {split!r}; {nearest(str(split), which.counts)}choose 'train' or 'test'"
        )
    images, labels = find_files(which.source, split, folder)
    data = from_idx(
        images,
        labels,
        class_names=which.class_names,
        target_name=which.target_name,
        name=which.source.name,
        origin=which.origin,
        licence=which.licence,
        note=f"the {split} split: grey values of 28 x 28 pixels, divided by 255",
    )
    counts, x = which.counts[split], data.inputs["x"]
    assert isinstance(data.observed, torch.Tensor)
    found = torch.bincount(data.observed, minlength=len(counts)).tolist()
    if x.shape[1:] != (1, 28, 28) or tuple(found) != counts:
        raise ValueError(
            f"'{images}' and '{labels.name}' hold {len(x):,} images of {x.shape[2]} x {x.shape[3]} pixels (classes 0 to 9: "
            f"{_shown(found)}), but {which.source.title}'s {split} split has {sum(counts):,} of 28 x 28 ({_shown(counts)}); "
            "give the folder of the original files, or read your own with bz.data.from_idx"
        )
    return replace(data, observation_dim="image")


def _shown(counts: Sequence[int]) -> str:
    return f"{counts[0]:,} each" if len(set(counts)) == 1 else ", ".join(map(str, counts))
