"""Data meet models by parameter names."""

from __future__ import annotations

import functools

import pyro
import pytest
import torch
from torch import nn

from bayeszoo.data import Data
from bayeszoo.data.binding import takes_index, takes_num_data

COUNTS = torch.tensor([3.0, 4.0, 2.0])
FLIPS = torch.tensor([5.0, 6.0, 7.0])


def test_coin_with_optional_input(coin):
    data = Data(inputs={"total_count": FLIPS}, observed=COUNTS)
    call = data.bind(coin)
    assert set(call) == {"x", "total_count", "num_data"}
    assert call["x"] is data.observed
    assert call["num_data"] == 3
    assert set(data.bind(coin, observed=False)) == {"total_count", "num_data"}
    assert list(data.observed_dict(coin)) == ["x"]
    trace = pyro.poutine.trace(coin).get_trace(**call)
    assert trace.nodes["x"]["is_observed"]


def test_plain_function(mixture_model):
    data = Data(inputs={}, observed=torch.randn(5))
    assert set(data.bind(mixture_model)) == {"x", "num_data"}
    # It takes no index, so a batch passes none.
    assert set(data.batch(torch.tensor([0, 1]), mixture_model)) == {"x", "num_data"}
    pyro.poutine.trace(mixture_model).get_trace(**data.bind(mixture_model))


def test_supervised_and_unsupervised(regression, coin):
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert set(Data(inputs={"x": x}, observed=y).bind(regression)) == {"x", "y", "num_data"}
    named = Data(inputs={"x": x}, observed={"y": y}).bind(regression)
    assert torch.equal(named["y"], y)
    # Where `x` is observed, a bare tensor goes there, and where it is an input, to the next free parameter.
    assert list(Data(inputs={}, observed=y).observed_dict(coin)) == ["x"]
    assert list(Data(inputs={"x": y}, observed=y).observed_dict(coin)) == ["total_count"]


def test_batch_scales_and_picks_rows(coin):
    data = Data(inputs={"total_count": FLIPS}, observed=COUNTS)
    index = torch.tensor([2, 0])
    call = data.batch(index, coin)
    assert call["x"].tolist() == [2.0, 3.0]
    assert call["total_count"].tolist() == [7.0, 5.0]
    assert call["num_data"] == 3
    assert torch.equal(call["index"], index)
    trace = pyro.poutine.trace(coin).get_trace(**call)
    # The plate scales two of three rows to the whole data set.
    assert trace.nodes["x"]["scale"] == pytest.approx(1.5)


def test_batches_average_to_the_full_log_likelihood(coin):
    data = Data(inputs={"total_count": FLIPS}, observed=COUNTS)
    model = pyro.condition(coin, data={"pi": torch.tensor(0.6)})

    def log_likelihood(call):
        trace = pyro.poutine.trace(model).get_trace(**call)
        trace.compute_log_prob()
        return trace.nodes["x"]["log_prob_sum"]

    ones = torch.stack([log_likelihood(data.batch(torch.tensor([i]), coin)) for i in range(3)])
    # The mean over all batches of one row is exact up to float32 rounding.
    torch.testing.assert_close(ones.mean(), log_likelihood(data.bind(coin)))


def test_constants_are_passed_and_never_batched():
    def model(x, y=None, *, sigma, offsets):
        return x

    offsets = torch.arange(7.0)
    data = Data(inputs={"x": FLIPS}, observed=COUNTS, constants={"sigma": 0.5, "offsets": offsets})
    call = data.batch(torch.tensor([1]), model)
    assert set(call) == {"x", "y", "sigma", "offsets"}
    assert call["sigma"] == 0.5
    assert torch.equal(call["offsets"], offsets)


def test_takes():
    def with_both(x, *, num_data=None, index=None):
        pass

    def any_keyword(**kwargs):
        pass

    @functools.wraps(with_both)
    def wrapped(*args, **kwargs):
        pass

    assert takes_num_data(with_both)
    assert takes_index(wrapped)
    assert takes_num_data(functools.partial(with_both, x=1))
    assert not takes_num_data(any_keyword)
    assert not takes_index(any_keyword)
    data = Data(inputs={"anything": FLIPS}, observed={"y": COUNTS})
    assert set(data.bind(any_keyword)) == {"anything", "y"}


def test_modules_are_read_by_forward():
    class Net(nn.Module):
        def forward(self, image, label=None, *, num_data=None):
            return image

    class Called:
        def __call__(self, image, label=None):
            return image

    data = Data(inputs={"image": torch.ones(3, 2)}, observed=COUNTS)
    assert set(data.bind(Net())) == {"image", "label", "num_data"}
    assert set(data.bind(Called())) == {"image", "label"}


def takes_nothing():
    pass


def unnamed(x, /, y=None):
    pass


def required(x, y):
    pass


@pytest.mark.parametrize(
    ("inputs", "observed", "model", "message"),
    [
        (
            {"total_cuont": FLIPS},
            COUNTS,
            "coin",
            r"Coin has no parameter 'total_cuont'; did you mean 'total_count'",
        ),
        ({}, {"q": COUNTS}, "coin", r"no parameter 'q'; it has x, total_count;"),
        ({}, COUNTS, "regression", r"Regression needs a value for 'x', and the data give y"),
        ({"x": FLIPS}, COUNTS, required, r"no free parameter with default None"),
        ({}, {"x": COUNTS}, required, r"needs a value for 'y'"),
        ({}, COUNTS, takes_nothing, r"no free parameter"),
        ({}, {"x": COUNTS}, takes_nothing, r"it takes no data"),
        ({"x": FLIPS}, COUNTS, unnamed, r"no parameter 'x'"),
        ({}, COUNTS, nn.Linear, r"is the class Linear, but an instance"),
        ({}, COUNTS, 3, r"is a int, but a PyroModule or a function"),
    ],
)
def test_refusals(inputs, observed, model, message, request):
    model = request.getfixturevalue(model) if isinstance(model, str) else model
    with pytest.raises(ValueError, match=message) as caught:
        Data(inputs=inputs, observed=observed).bind(model)
    assert "\n" not in str(caught.value)
