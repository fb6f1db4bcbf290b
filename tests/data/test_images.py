"""Image sets: the canonical files where they are, the order of places, a download, and one sentence for what is wrong."""

from __future__ import annotations

import gzip
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import bayeszoo as bz
from bayeszoo.cli import app
from bayeszoo.data import from_idx, image_folders, images, load

PREFIX = {"train": "train", "test": "t10k"}
MNIST_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    return struct.pack(">HBB", 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder: Path, counts: tuple[int, ...], size: int = 28, grey: int = 0, ending: str = "", split: str = "test") -> Path:
    """A split whose labels have these counts, with pictures of one grey value."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    pixels = np.full((len(labels), size, size), grey, np.uint8)
    for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        content = idx(values)
        name = f"{PREFIX[split]}-{kind}-ubyte{ending}"
        (folder / name).write_bytes(gzip.compress(content, 1) if ending == ".gz" else content)
    return folder


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any image files and without torchvision; returns the torchvision folder of its cache."""
    monkeypatch.delenv("BAYESZOO_DATA", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    source = replace(images._FASHION_MNIST.source, system_folder=tmp_path / "system")
    monkeypatch.setattr(images, "_FASHION_MNIST", replace(images._FASHION_MNIST, source=source))
    return tmp_path / "cache/datasets/vision"


# The published files


@pytest.fixture(scope="module")
def mnist_folder(shared_data: Path) -> Path:
    if not (shared_data / "mnist").is_dir():
        pytest.skip("MNIST's files are absent: put them into the folder 'mnist' of BAYESZOO_DATA")
    return shared_data / "mnist"


@pytest.mark.parametrize(("split", "first"), [("train", [5, 0, 4, 1, 9]), ("test", [7, 2, 1, 0, 4])])
def test_mnist_is_mnist(mnist_folder: Path, split: str, first: list[int]) -> None:
    data = load("mnist", split=split, folder=mnist_folder)
    n = {"train": 60_000, "test": 10_000}[split]
    x = data.inputs["x"]
    assert (x.shape, x.dtype) == ((n, 1, 28, 28), torch.float32)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert data.observed.dtype == torch.int64
    assert data.observed[:5].tolist() == first
    assert (data.name, data.num_classes, data.class_names[3], data.target_name) == ("mnist", 10, "3", "digit")
    assert data.licence == "CC BY-SA 3.0"
    assert "LeCun" in data.origin
    assert repr(data).startswith(f"Data(mnist: {n} images; inputs x ({n}, 1, 28, 28) float32; observed digit")
    if split == "train":
        # The mean and sd that everybody normalises MNIST by, given to four digits.
        assert float(x.mean(dtype=torch.float64)) == pytest.approx(0.1307, abs=5e-5)
        assert float(x.double().std()) == pytest.approx(0.3081, abs=5e-5)
        # Division by 255 loses nothing: the file's bytes come back, behind its header of 16.
        values = (x * 255).round().to(torch.uint8).numpy().tobytes()
        assert gzip.decompress((mnist_folder / "train-images-idx3-ubyte.gz").read_bytes())[16:] == values


def test_environment_names_the_folder(mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAYESZOO_DATA", str(mnist_folder.parent))
    assert len(load("mnist", split="test")) == 10_000


@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_mnist_is_fashion_mnist(split: str) -> None:
    folder = images._FASHION_MNIST.source.system_folder
    assert folder is not None
    if not folder.is_dir():
        pytest.skip("Fashion-MNIST is absent: install Debian's package dataset-fashion-mnist")
    data = load("fashion_mnist", split=split, folder=folder)
    assert torch.bincount(data.observed).tolist() == [len(data) // 10] * 10
    assert (data.num_classes, data.class_names[9], data.target_name) == (10, "Ankle boot", "article")
    assert (data.licence, data.name) == ("MIT", "fashion_mnist")
    if split == "train":
        assert data.observed[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
        # Known to four digits, like MNIST's.
        assert float(data.inputs["x"].mean(dtype=torch.float64)) == pytest.approx(0.2860, abs=5e-5)
        assert float(data.inputs["x"].double().std()) == pytest.approx(0.3530, abs=5e-5)


# Where files are looked for


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_given_folder(tmp_path: Path, alone: Path, ending: str) -> None:
    data = load("mnist", split="test", folder=str(write(tmp_path / "here", MNIST_TEST, grey=51, ending=ending)))
    assert data.inputs["x"].unique().tolist() == [pytest.approx(0.2)]
    assert torch.bincount(data.observed).tolist() == list(MNIST_TEST)
    assert data.note == "the test split: grey values of 28 x 28 pixels, divided by 255"


def test_dotted_names_are_known(tmp_path: Path, alone: Path) -> None:
    folder = write(tmp_path / "here", MNIST_TEST)
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("-idx", ".idx"))
    assert len(load("mnist", split="test", folder=folder)) == 10_000


def test_the_order_of_places(tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place is taken before the next one; the pictures' grey value says which it was."""

    def grey() -> int:
        return round(255 * float(load("fashion_mnist", split="test").inputs["x"].max()))

    counts = (1000,) * 10
    write(alone / "FashionMNIST/raw", counts, grey=3)
    assert grey() == 3
    write(tmp_path / "system", counts, grey=2)
    assert grey() == 2
    monkeypatch.setenv("BAYESZOO_DATA", str(tmp_path / "mine"))
    assert grey() == 2
    write(tmp_path / "mine/fashion_mnist", counts, grey=1)
    assert grey() == 1
    # Half a split in a folder of one's own is a mistake to be told, not to be passed over.
    (tmp_path / "mine/fashion_mnist/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no t10k-labels-idx1-ubyte \(.gz or not\) in '.*mine/fashion_mnist'"):
        grey()


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, download) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=SimpleNamespace(MNIST=download)))


def test_torchvision_downloads_once_and_the_files_stay(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def download(root: str, train: bool, download: bool) -> None:
        calls.append((root, train, download))
        print("Downloading")
        write(Path(root) / "MNIST/raw", MNIST_TEST)

    fake_torchvision(monkeypatch, download)
    # A download that was broken off: torchvision goes on with it.
    (alone / "MNIST/raw").mkdir(parents=True)
    (alone / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(b"")
    (alone / "MNIST/raw/t10k-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b")
    assert len(load("mnist", split="test")) == 10_000
    assert calls == [(str(alone.resolve()), False, True)]
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Downloading\n")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert len(load("mnist", split="test")) == 10_000


@pytest.mark.parametrize(
    "error", [RuntimeError("Error downloading x:\nTried y, got:\nz.\n"), OSError(28, "No space left"), TimeoutError()]
)
def test_a_failing_download_is_one_sentence(alone: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(root: str, train: bool, download: bool) -> None:
        raise error

    fake_torchvision(monkeypatch, download)
    with pytest.raises(
        FileNotFoundError, match=r"torchvision could not download it into '.*vision' \((Error dow|\[Errno|Timeo)"
    ) as caught:
        load("mnist")
    assert "\n" not in str(caught.value)


def test_a_torchvision_that_cannot_be_imported_is_one_sentence(
    alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site/torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "torchvision")
    with pytest.raises(FileNotFoundError, match=r"cannot be imported \(operator torchvision::nms does not exist\); put"):
        load("mnist")


def test_the_real_torchvision(alone: Path, monkeypatch: pytest.MonkeyPatch, mnist_folder: Path, tmp_path: Path) -> None:
    """Its own code without a network: no mirror answers, then the packed files are there, as a broken-off download left them."""
    monkeypatch.delitem(sys.modules, "torchvision")
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision, an optional extra, is not installed")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{tmp_path.as_uri()}/"])
    with pytest.raises(
        FileNotFoundError, match=r"could not download it into .* \(.*train-images-idx3-ubyte.gz.*\); put"
    ) as caught:
        load("mnist", split="test")
    assert "\n" not in str(caught.value)
    for path in mnist_folder.iterdir():
        (alone / "MNIST/raw" / path.name).write_bytes(path.read_bytes())
    assert load("mnist", split="test").observed[:5].tolist() == [7, 2, 1, 0, 4]
    found = (alone / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    assert found == gzip.decompress((mnist_folder / "t10k-images-idx3-ubyte.gz").read_bytes())


def test_nowhere_to_be_found(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist")
    told = str(caught.value)
    assert told == (
        f"MNIST's train split is in none of the folders '{alone.resolve()}/MNIST/raw' (BAYESZOO_DATA is not set), and "
        "torchvision, which downloads it, is not installed; put its IDX files into a folder and give folder=..., or set "
        "BAYESZOO_DATA to the folder that holds 'mnist', or install torchvision (pip install 'bayeszoo[images]') where "
        "there is a network"
    )
    monkeypatch.setenv("BAYESZOO_DATA", str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError) as caught:
        load("fashion_mnist", split="test")
    told = str(caught.value)
    assert f"Fashion-MNIST's test split is in none of the folders '{tmp_path / 'mine/fashion_mnist'}', '" in told
    assert "install Debian's package dataset-fashion-mnist" in told
    assert "not set" not in told
    assert "\n" not in told


def test_the_command_line_says_it_too(alone: Path) -> None:
    result = CliRunner().invoke(app, ["fit", "linear_regression", "--data", "mnist"])
    assert result.exit_code == 2
    assert result.stderr.startswith("bayeszoo: MNIST's train split is in none of the folders")
    assert result.stderr.count("\n") == 1
    listed = CliRunner().invoke(app, ["list"])
    assert listed.exit_code == 0
    assert "fashion_mnist" in listed.stdout


# What the files hold


def test_another_set_in_the_folder_is_refused(tmp_path: Path, alone: Path) -> None:
    clothes = write(tmp_path / "clothes", (1000,) * 10)
    with pytest.raises(
        ValueError, match=r"hold 10,000 images of 28 x 28 pixels .*1,000 each\), but MNIST's test split has"
    ) as caught:
        load("mnist", split="test", folder=clothes)
    assert "\n" not in str(caught.value)
    assert "bz.data.from_idx" in str(caught.value)
    with pytest.raises(ValueError, match=r"hold 10,000 images of 8 x 8 pixels"):
        load("mnist", split="test", folder=write(tmp_path / "small", MNIST_TEST, size=8))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "valid"}, ValueError, r"^MNIST has no split 'valid'; choose 'train' or 'test'$"),
        ({"split": "Test"}, ValueError, r"did you mean 'test'\? choose 'train' or 'test'$"),
        ({"split": None}, ValueError, r"no split None"),
        ({"folder": "absent"}, FileNotFoundError, r"^there is no folder 'absent'; give the folder that holds train-images"),
        (
            {"folder": "."},
            FileNotFoundError,
            r"^there is no train-images-idx3-ubyte and no train-labels-idx1-ubyte \(.gz or not\) in '\.'",
        ),
    ],
)
def test_wrong_options(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, error, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as caught:
        load("mnist", **options)
    assert "\n" not in str(caught.value)


# One's own files


def files(folder: Path, pixels: np.ndarray, labels: np.ndarray, code: int = 0x08) -> tuple[Path, Path]:
    (folder / "shapes.idx").write_bytes(idx(pixels))
    (folder / "classes.idx").write_bytes(idx(labels, code))
    return folder / "shapes.idx", folder / "classes.idx"


PIXELS = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3) * 11
LABELS = np.array([2, 0, 2, 1], np.uint8)


def test_own_files(tmp_path: Path) -> None:
    paths = files(tmp_path, PIXELS, LABELS)
    data = from_idx(*paths, class_names=["circle", "square", "star", "blob"], target_name="shape", licence="mine", note="drawn")
    assert torch.equal(data.inputs["x"], torch.from_numpy(PIXELS)[:, None].float() / 255)
    assert data.observed.tolist() == [2, 0, 2, 1]
    assert (data.num_classes, data.class_names[3], data.target_name) == (4, "blob", "shape")
    assert (data.name, data.origin, data.licence, data.note) == ("shapes", "shapes.idx, classes.idx", "mine", "drawn")
    plain = from_idx(*map(str, paths), name="own", origin="a shelf")
    assert (plain.num_classes, plain.class_names, plain.name, plain.origin) == (3, ("0", "1", "2"), "own", "a shelf")


def test_labels_of_wider_types(tmp_path: Path) -> None:
    data = from_idx(*files(tmp_path, PIXELS, LABELS.astype(">i4"), 0x0C))
    assert data.observed.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize(
    ("pixels", "labels", "code", "names", "message"),
    [
        (PIXELS, LABELS[:3], 0x08, None, r"shapes.idx' holds 4 images and '.*classes.idx' 3 labels"),
        (PIXELS, LABELS, 0x08, ["a", "b"], r"label 2 in row 1 .* but the 2 class_names stand for 0 to 1"),
        (
            PIXELS,
            LABELS.astype(np.int8) - 1,
            0x09,
            None,
            r"label -1 in row 2 .* labels are the classes' numbers, counted from 0",
        ),
        (PIXELS, np.array([0, 1, 2_000_000_000, 1], ">i4"), 0x0C, None, r"label 2000000000 in row 3"),
        (PIXELS, LABELS, 0x08, "circle", r"class_names must be a list of texts"),
        (PIXELS, PIXELS, 0x08, None, r"classes.idx' holds uint8 values of shape \(4, 2, 3\), but labels are integers"),
        (PIXELS, LABELS.astype(">f4"), 0x0D, None, r"holds float32 values of shape \(4,\), but labels are integers"),
        (LABELS, LABELS, 0x08, None, r"shapes.idx' holds uint8 values of shape \(4,\), but grey images are bytes"),
        (PIXELS[:0], LABELS[:0], 0x08, None, r"holds no pixels \(shape \(0, 2, 3\)\)"),
    ],
)
def test_own_files_that_do_not_fit(tmp_path: Path, pixels, labels, code, names, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_idx(*files(tmp_path, pixels, labels, code), class_names=names)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    pixels, labels = files(tmp_path, PIXELS, LABELS)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*classes.idx'"):
        from_idx(pixels, labels)


def test_torchvisions_folder_follows_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(link))
    assert image_folders.torchvision_root() == real.resolve() / "datasets/vision"


def test_images_meet_a_network(tmp_path: Path) -> None:
    """Images have a channel, so that a convolution takes them as they are."""
    data = bz.data.few_labels(from_idx(*files(tmp_path, PIXELS, LABELS)), 3, seed=0)
    assert torch.nn.Conv2d(1, 2, 2)(data.inputs["x"]).shape == (3, 2, 1, 2)
    assert sorted(data.observed.tolist()) == [0, 1, 2]
