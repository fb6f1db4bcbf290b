"""Data: frozen, validated, and cut into rows, batches and parts."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

from bayeszoo.data import Data, from_arrays


def table(n=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=generator, dtype=dtype)
    return Data(inputs={"x": x}, observed=x[:, 0] + 1.0, feature_names=("a", "b"), target_name="y")


def test_frozen_including_its_dicts():
    data = table()
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"
    for change in (
        lambda: data.inputs.__setitem__("z", torch.ones(3)),
        lambda: data.inputs.pop("x"),
        lambda: data.constants.update(a=1),
        lambda: data.inputs.clear(),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change()
    assert isinstance(data.inputs, dict)
    assert type(data.inputs | {}) is dict


def test_given_dict_and_array_stay_separate():
    array, given = np.ones((3, 2)), {}
    given["x"] = array
    data = Data(inputs=given, observed=np.zeros(3))
    array[0, 0] = 7.0
    given["late"] = array
    assert data.inputs["x"].eq(1.0).all()
    assert list(data.inputs) == ["x"]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_are_equal_and_frozen(clone):
    data = table()
    other = clone(data)
    assert torch.equal(other.inputs["x"], data.inputs["x"])
    assert repr(other) == repr(data)
    with pytest.raises(TypeError, match="frozen"):
        other.inputs["x"] = torch.ones(1)


def test_dtypes():
    data = Data(inputs={}, observed=torch.tensor([True, False]))
    assert data.observed.dtype == torch.get_default_dtype()
    assert data.observed.tolist() == [1.0, 0.0]
    assert Data(inputs={}, observed=torch.tensor([3, 4])).observed.dtype == torch.int64
    assert Data(inputs={}, observed=np.array([3, 4], dtype=np.uint16)).observed.dtype == torch.int64
    assert Data(inputs={}, observed=np.array([3, 4], dtype=">f8")).observed.tolist() == [3.0, 4.0]
    assert Data(inputs={}, observed=np.arange(3.0)[::-1]).observed.tolist() == [2.0, 1.0, 0.0]
    assert Data(inputs={}, observed=torch.tensor([3, 4])).dtype == torch.get_default_dtype()
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not Data(inputs={}, observed=parameter).observed.requires_grad


def test_shape_facts_and_repr():
    data = table()
    assert len(data) == 12
    assert data.dim == 2
    assert data.dtype == torch.float64
    assert data.device == torch.device("cpu")
    assert data.nbytes == 12 * 3 * 8
    assert not data.streamed
    assert repr(data) == ("Data(data: 12 observations; inputs x (12, 2) float64; observed y (12,) float64)")


def test_to_casts_floating_tensors_only():
    data = Data(
        inputs={"x": torch.ones(2, 1)},
        observed=torch.tensor([0, 1]),
        constants={"scale": torch.tensor(2.0), "k": 3},
    ).to(dtype=torch.float64)
    assert data.inputs["x"].dtype == data.constants["scale"].dtype == data.dtype == torch.float64
    assert data.observed.dtype == torch.int64
    assert data.constants["k"] == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(regression):
    data = from_arrays(np.random.default_rng(0).normal(size=(20, 3)), np.arange(20.0), standardize=True)
    there = data.to("cuda", torch.float32)
    assert there.device.type == "cuda"
    index = next(there.batches(4, seed=0, epoch=0))
    assert index.device.type == "cuda"
    assert there.batch(index, regression)["x"].device.type == "cuda"
    here, away = data.split(0.5, seed=0)[0], there.split(0.5, seed=0)[0]
    # float32 has 24 bits; values are of order 1.
    torch.testing.assert_close(away.inputs["x"].cpu().double(), here.inputs["x"], atol=1e-6, rtol=1e-6)
    assert there.encode(np.zeros((2, 3)))["x"].device.type == "cuda"


def test_select():
    labels = tuple("abcdefghijkl")
    data = dataclasses.replace(table(), labels=labels, truth={"z": torch.arange(12), "w": torch.arange(12)}, local_sites=("z",))
    part = data.select([3, -1, 0])
    assert torch.equal(part.inputs["x"], data.inputs["x"][[3, 11, 0]])
    assert torch.equal(part.observed, data.observed[[3, 11, 0]])
    assert part.labels == ("d", "l", "a")
    assert part.truth["z"].tolist() == [3, 11, 0]
    assert part.truth["w"].tolist() == list(range(12))
    assert len(data.select(slice(0, 5))) == 5
    assert data.select(torch.arange(12) > 9).labels == ("k", "l")
    named = Data(inputs={}, observed={"a": torch.arange(4), "b": torch.arange(4)}).select([2])
    assert named.observed["b"].tolist() == [2]


@pytest.mark.parametrize("rows", [[12], [-13], [0.5], [[0]], [True, False], slice(0, 0), []])
def test_select_refuses(rows):
    with pytest.raises(ValueError, match=r"rows must|empty"):
        table().select(rows)


def test_split_is_a_seeded_partition():
    data = from_arrays(np.arange(40.0).reshape(20, 2), np.arange(20))
    first, second = data.split(0.7, seed=3)
    assert (len(first), len(second)) == (14, 6)
    assert sorted(first.observed.tolist() + second.observed.tolist()) == list(range(20))
    assert first.observed.tolist() == sorted(first.observed.tolist())
    assert torch.equal(first.inputs["x"][:, 0], 2.0 * first.observed)
    assert torch.equal(data.split(0.7, seed=3)[0].observed, first.observed)
    assert not torch.equal(data.split(0.7, seed=4)[0].observed, first.observed)


def test_seeds_leave_global_generators_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    data = table()
    data.split(0.5, seed=0)
    list(data.batches(4, seed=0, epoch=0))
    assert torch.equal(torch.rand(3), expected)


def test_batches():
    data = table(13)
    epochs = [torch.stack(list(data.batches(4, seed=1, epoch=e))) for e in range(3)]
    for batches in epochs:
        assert batches.shape == (3, 4)
        assert batches.dtype == torch.int64
        assert batches.unique().numel() == 12
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(torch.stack(list(data.batches(4, seed=1, epoch=1))), epochs[1])
    # (seed, epoch) is a pair: the streams (0, 1) and (1, 0) differ.
    swapped = torch.stack(list(data.batches(4, seed=0, epoch=1)))
    assert not torch.equal(swapped, epochs[0])
    (whole,) = data.batches(13, seed=0, epoch=0)
    assert whole.sort().values.tolist() == list(range(13))


def test_batches_draw_every_row_equally_often():
    data = table(10)
    counts = torch.zeros(10)
    for epoch in range(500):
        for index in data.batches(4, seed=0, epoch=epoch):
            counts[index] += 1
    # Each row is kept with probability 0.8 in each of 500 epochs: sd = sqrt(500 * 0.16) = 8.9; 4 sds.
    assert (counts - 400).abs().max() < 36


NAN, INF = float("nan"), float("inf")
X = torch.ones(4, 2)


def spoiled(value, row=2, column=1):
    x = X.clone()
    x[row, column] = value
    return x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": {"x": spoiled(NAN)}}, r"column 2 of input 'x' holds NaN in row 3 \(rows count from 1\)"),
        ({"inputs": {"x": spoiled(-INF)}, "feature_names": ("age", "bmi")}, r"column 'bmi' .* -Inf in row 3"),
        (
            {"inputs": {"x": X}, "observed": torch.tensor([0, 1, INF, 2])},
            r"observed tensor holds Inf in row 3",
        ),
        ({"observed": torch.tensor([NAN]), "target_name": "price"}, r"observed 'price' holds NaN in row 1"),
        ({"observed": {"y": torch.tensor([1.0, NAN])}}, r"observed 'y' holds NaN in row 2"),
        (
            {"inputs": {"x": torch.full((1, 1, 2), NAN)}, "observed": torch.ones(1)},
            r"element \(0, 0\) .* row 1",
        ),
        ({"observed": torch.empty(0)}, r"the observed tensor is empty: its shape is \(0,\)"),
        ({"inputs": {"x": torch.ones(4, 0)}}, r"input 'x' is empty"),
        ({"observed": {}}, r"observed is an empty dict"),
        ({"observed": torch.ones(3), "inputs": {"x": X}}, r"observed tensor has 3 rows, but input 'x' has 4"),
        ({"observed": torch.tensor(1.0)}, r"single number"),
        ({"observed": [1.0, 2.0]}, r"is a list, but a torch tensor or a numpy array"),
        ({"observed": None}, r"is a NoneType"),
        ({"inputs": {"x": np.array(["a", 1], dtype=object)}}, r"input 'x' has dtype object"),
        ({"inputs": {"x": np.array(["a", "b"])}}, r"input 'x' has dtype <U1"),
        ({"inputs": {"x": np.array([1j, 2])}}, r"dtype complex128"),
        ({"inputs": {"x": torch.tensor([1j, 2])}}, r"dtype torch.complex64"),
        ({"observed": torch.ones(3).to_sparse()}, r"sparse"),
        ({"inputs": [X]}, r"inputs must be a dict"),
        ({"inputs": {1: X}}, r"inputs must be a dict"),
        ({"constants": 3}, r"constants must be a dict"),
        ({"inputs": {"x": X}, "observed": {"x": torch.ones(4)}}, r"'x' stands in both inputs and observed"),
        ({"inputs": {"x": X}, "constants": {"x": 1.0}}, r"'x' stands in both inputs and constants"),
        ({"constants": {"num_data": 3}}, r"'num_data' in constants is reserved"),
        ({"observed": {"index": torch.ones(4)}}, r"'index' in observed is reserved"),
        (
            {"inputs": {"x": X}, "feature_names": ("a",)},
            r"feature_names has 1 names, but input 'x' has shape",
        ),
        ({"feature_names": ("a",)}, r"there is no input 'x'"),
        ({"inputs": {"x": X}, "feature_names": ("a", "a")}, r"two columns of input 'x' are named 'a'"),
        ({"inputs": {"x": X}, "feature_names": "ab"}, r"feature_names must be a list"),
        ({"labels": ("a", "b")}, r"labels has 2 names for 4 observations"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, message):
    arguments = {"inputs": {}, "observed": torch.ones(4)} | arguments
    with pytest.raises(ValueError, match=message) as caught:
        Data(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.split(0.0, seed=0), "between 0 and 1"),
        (lambda d: d.split(1.5, seed=0), "between 0 and 1"),
        (lambda d: d.split(0.01, seed=0), "into 0 and 12"),
        (lambda d: d.split(0.5, seed=-1), "non-negative"),
        (lambda d: d.batches(13, seed=0, epoch=0), "between 1 and the number of observations, 12"),
        (lambda d: d.batches(0, seed=0, epoch=0), "batch_size must be"),
        (lambda d: d.batches(2.0, seed=0, epoch=0), "batch_size must be"),
        (lambda d: d.batches(2, seed=0, epoch=-1), "non-negative"),
        (lambda d: d.to("abacus"), "device 'abacus' cannot be used here"),
        (lambda d: d.to("cuda:99"), "device 'cuda:99' cannot be used here"),
        (lambda d: d.to(dtype=torch.int64), "floating dtype"),
        (lambda d: d.encode(np.ones((1, 2))), "not made from a table"),
        (lambda d: d.select([0]).select([1]), "rows must lie"),
        (lambda d: Data(inputs={}, observed=d.observed).dim, "no such input"),
    ],
)
def test_bad_calls_get_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(table())
    assert "\n" not in str(caught.value)
