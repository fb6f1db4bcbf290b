"""A few labelled examples: shares of the classes, nested sets, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

import bayeszoo as bz
from bayeszoo.data import Data, few_labels


def classes(counts: list[int], **options) -> Data:
    """Examples in the order of their classes; `x` is the row's number, so that a choice can be traced."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    rows = torch.arange(len(labels), dtype=torch.float32)[:, None]
    return Data(inputs={"x": rows}, observed=labels, num_classes=len(counts), **options)


def counted(data: Data) -> list[int]:
    return torch.bincount(data.observed, minlength=data.num_classes).tolist()


def test_shares_are_proportional_and_nobody_is_left_out():
    data = classes([1000, 600, 398, 2])
    # Quotas of 100 are 50, 30, 19.9 and 0.1; the last class has its one example, which the first seats pay.
    found = counted(few_labels(data, 100, seed=0))
    assert found[3] == 1
    assert sum(found) == 100
    # Sainte-Laguë keeps each share within one of its quota here.
    assert found == pytest.approx([50, 30, 19.9, 0.1], abs=1)
    # Where methods differ, worked by hand: 53, 24, 23, 53/3, 53/5, 24/3, 23/3 are the largest (d'Hondt's are 4, 2, 1).
    assert counted(few_labels(classes([53, 24, 23]), 7, seed=0)) == [3, 2, 2]
    assert counted(few_labels(data, 4, seed=0)) == [1, 1, 1, 1]
    assert counted(few_labels(data, 2000, seed=0)) == [1000, 600, 398, 2]


def test_equal_classes_get_equal_shares():
    data = classes([50] * 10)
    for seed in range(5):
        assert counted(few_labels(data, 100, seed)) == [10] * 10
        assert set(counted(few_labels(data, 103, seed))) == {10, 11}
    # The three left over go to other classes with other seeds.
    assert len({tuple(counted(few_labels(data, 103, seed))) for seed in range(5)}) > 1


def test_sets_are_nested_and_the_seed_alone_chooses():
    digits = bz.data.load("digits")
    data = Data(inputs={"x": torch.arange(len(digits))[:, None]}, observed=digits.observed, num_classes=10)
    rows = {n: few_labels(data, n, seed=3).inputs["x"][:, 0] for n in (10, 100, 300, 1000)}
    for small, large in ((10, 100), (100, 300), (300, 1000)):
        assert len(rows[small].unique()) == small
        assert set(rows[small].tolist()) < set(rows[large].tolist())
    assert torch.equal(rows[100], rows[100].sort().values)
    assert torch.equal(few_labels(data, 100, seed=3).observed, digits.observed[rows[100]])
    other = few_labels(data, 100, seed=4).inputs["x"][:, 0]
    # Two random hundreds of 1,797 share about 6.
    assert len(set(other.tolist()) & set(rows[100].tolist())) < 25
    state = torch.get_rng_state()
    few_labels(data, 100, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_example_is_as_likely_as_another():
    data = classes([20, 10])
    times = torch.zeros(30)
    for seed in range(600):
        times[few_labels(data, 6, seed).inputs["x"][:, 0].long()] += 1
    # Each seed takes 4 of 20 and 2 of 10: Binomial(600, 0.2) has mean 120 and sd 9.8; 30 examples within 3.7 sds.
    assert float((times - 120).abs().max()) < 3.7 * 9.8


def test_what_is_known_about_the_data_stays():
    data = few_labels(bz.data.load("digits"), 100, seed=1)
    assert (data.name, data.num_classes, len(data.class_names)) == ("digits", 10, 10)
    assert data.note.endswith("divided by 16; 100 of 1797 examples, stratified by class with seed 1")


def test_targets_of_zeros_and_ones():
    table = bz.data.from_arrays(torch.arange(40.0)[:, None], torch.tensor([0.0, 0.0, 0.0, 1.0] * 10))
    assert float(few_labels(table, 8, seed=0).observed.sum()) == 2
    assert few_labels(table, 8, seed=0).observed.is_floating_point()


@pytest.mark.parametrize(
    ("n", "seed", "message"),
    [
        (2, 0, r"n must be an integer between 3 \(one example for each class that occurs in three\) and 30 .*, not 2$"),
        (31, 0, r"not 31$"),
        (10.0, 0, r"not 10\.0$"),
        (True, 0, r"not True$"),
        (10, -1, r"seed and epoch must be non-negative integers"),
    ],
)
def test_refusals(n, seed, message):
    with pytest.raises(ValueError, match=message):
        few_labels(classes([10, 10, 10], name="three"), n, seed)


def test_data_without_classes_are_refused():
    with pytest.raises(ValueError, match=r"needs one class label for each example, and diabetes has none"):
        few_labels(bz.data.load("diabetes"), 10, seed=0)
    stream = bz.data.StreamedData([(torch.zeros(2), 0), (torch.ones(2), 1)])
    with pytest.raises(ValueError, match=r"needs a bz\.data\.Data in memory, not StreamedData; load"):
        few_labels(stream, 2, seed=0)
