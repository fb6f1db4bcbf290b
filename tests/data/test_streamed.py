"""Torch datasets: stacked where they fit, else fetched by batch with the same answers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from bayeszoo.data import Data, StreamedData, from_dataset


class Rows(Dataset):
    """Items made by a function, with a count of how often each was read."""

    def __init__(self, n, make):
        self.n, self.make, self.reads = n, make, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        return self.make(i)


def pairs(n=10):
    return Rows(n, lambda i: (torch.full((3,), float(i)), i % 2))


def test_small_datasets_are_stacked():
    data = from_dataset(pairs(), name="pairs", origin="test", num_classes=2)
    assert isinstance(data, Data)
    assert data.inputs["x"].shape == (10, 3)
    assert data.inputs["x"][:, 0].tolist() == list(range(10))
    assert data.observed.dtype == torch.int64
    assert (data.name, data.origin, data.num_classes) == ("pairs", "test", 2)


def test_item_kinds():
    alone = from_dataset(Rows(4, lambda i: torch.full((2,), float(i))))
    assert not alone.inputs
    assert alone.observed.shape == (4, 2)
    assert torch.equal(from_dataset(Rows(4, lambda i: (torch.full((2,), float(i)),))).observed, alone.observed)
    floats = from_dataset(Rows(4, lambda i: (torch.ones(1).numpy(), 0.5 * i)))
    assert floats.observed.dtype == torch.get_default_dtype()
    named = from_dataset(Rows(4, lambda i: {"x": torch.ones(2), "y": i, "w": 1.0}), target="y", constants={"k": 2})
    assert set(named.inputs) == {"x", "w"}
    assert set(named.observed) == {"y"}
    assert named.constants == {"k": 2}
    both = from_dataset(Rows(4, lambda i: {"a": i, "b": i}), target=("a", "b"))
    assert set(both.observed) == {"a", "b"}
    tensors = from_dataset(TensorDataset(torch.ones(5, 2), torch.arange(5)))
    assert tensors.observed.tolist() == [0, 1, 2, 3, 4]


def test_limit_decides():
    # Three float32 and one int64 are 20 bytes a row.
    assert isinstance(from_dataset(pairs(), in_memory_limit_bytes=200), Data)
    rows = pairs()
    assert isinstance(from_dataset(rows, in_memory_limit_bytes=199), StreamedData)
    assert rows.reads == 1


def test_streamed_batches_equal_those_in_memory(regression):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(11, 3, generator=generator), torch.randn(11, generator=generator)
    rows = Rows(11, lambda i: (x[i], y[i]))
    whole = from_dataset(rows)
    streamed = from_dataset(rows, in_memory_limit_bytes=0)
    assert len(streamed) == 11
    assert streamed.streamed
    assert streamed.dim == 3
    assert streamed.dtype == torch.float32
    assert streamed.nbytes == whole.nbytes
    for ours, theirs in zip(streamed.batches(4, seed=2, epoch=1), whole.batches(4, seed=2, epoch=1), strict=True):
        assert torch.equal(ours, theirs)
        a, b = streamed.batch(ours, regression), whole.batch(theirs, regression)
        assert set(a) == set(b) == {"x", "y", "num_data", "index"}
        assert a["num_data"] == 11
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def test_streamed_fetches_only_what_is_asked(regression):
    rows = pairs(1000)
    data = from_dataset(rows, in_memory_limit_bytes=0)
    rows.reads = 0
    data.batch(torch.tensor([1, 5, 7]), regression)
    assert rows.reads == 3


def test_streamed_split_and_to():
    data = from_dataset(pairs(20), in_memory_limit_bytes=0)
    first, second = data.split(0.75, seed=0)
    assert (len(first), len(second)) == (15, 5)
    ids = [int(v) for part in (first, second) for v in part.select(slice(None)).inputs["x"][:, 0]]
    assert sorted(ids) == list(range(20))
    inner, _ = first.split(0.4, seed=0)
    assert set(inner.select(slice(None)).inputs["x"][:, 0].tolist()) < set(map(float, ids[:15]))
    wide = data.to("cpu", torch.float64)
    assert wide.dtype == torch.float64
    assert wide.select([0]).observed.dtype == torch.int64
    assert wide.to("cpu").dtype == torch.float64
    assert repr(data) == "StreamedData(dataset: 20 observations, 0 MB, fetched by batch)"


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda d, m: d.bind(m), "bind"),
        (lambda d, m: d.inputs, "inputs"),
        (lambda d, m: d.observed, "observed"),
        (lambda d, m: d.observed_dict(m), "observed_dict"),
    ],
)
def test_what_needs_all_rows_says_so(call, what, regression):
    data = from_dataset(pairs(), in_memory_limit_bytes=0)
    with pytest.raises(ValueError, match=rf"^{what} needs all 10 rows of dataset in memory.*batch_size"):
        call(data, regression)


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.ones(1)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Endless(), {}, r"is a Endless, but one with len\(\) and \[i\]"),
        (3, {}, r"is a int"),
        ([], {}, r"no rows"),
        (Rows(2, lambda i: (1, 2, 3)), {}, r"tuples of 3"),
        (Rows(2, lambda i: {"x": torch.ones(1)}), {}, r"keys x; name those of the observed"),
        (Rows(2, lambda i: {"x": torch.ones(1)}), {"target": "y"}, r"target=\.\.\."),
        (Rows(3, lambda i: (torch.ones(1 + i // 2), 0)), {}, r"item 3 of the dataset .* x of shape \(2,\)"),
        (
            Rows(3, lambda i: (torch.ones(1), 0 if i < 2 else 0.5)),
            {},
            r"item 3 .* torch.float32, unlike the first",
        ),
        (Rows(3, lambda i: (torch.tensor([1.0, float("nan")]), 0)), {}, r"NaN in row 1"),
        (Rows(2, lambda i: ("text", 0)), {}, r"item 1 is a str"),
    ],
)
def test_refusals(dataset, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_dataset(dataset, **options)
    assert "\n" not in str(caught.value)


def test_streamed_rows_are_checked_when_fetched(regression):
    rows = Rows(9, lambda i: (torch.tensor([0.0, float("nan") if i == 6 else 1.0]), 0))
    data = from_dataset(rows, in_memory_limit_bytes=0)
    with pytest.raises(ValueError, match=r"column 2 of 'x' holds NaN in row 7 "):
        data.batch(torch.tensor([8, 6]), regression)
    with pytest.raises(ValueError, match="between 0 and 8"):
        data.select([9])
    with pytest.raises(ValueError, match="number of observations, 9"):
        data.batches(10, seed=0, epoch=0)
    with pytest.raises(ValueError, match="'abacus' cannot be used"):
        data.to("abacus")
