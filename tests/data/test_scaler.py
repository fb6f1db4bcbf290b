"""Standardisation and its way back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bayeszoo.data import Scaler, from_arrays, from_frame

# float64 rounding of a product and a sum of numbers of order 1e6.
EXACT = {"atol": 1e-9, "rtol": 1e-12}


def raw(n=200, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal([10.0, -3.0], [2.0, 0.1], size=(n, 2))
    return x, 1e5 + 2e4 * x[:, 0] + rng.normal(size=n)


def test_standardised_columns_have_mean_0_and_sd_1():
    x, y = raw()
    data = from_arrays(x, y, standardize=True)
    for column in (*data.inputs["x"].T, data.observed):
        assert abs(float(column.mean())) < 1e-10
        assert float(column.std(correction=0)) == pytest.approx(1.0, abs=1e-12)
    assert data.scaler is not None
    np.testing.assert_allclose(data.scaler.input_mean, x.mean(0))
    np.testing.assert_allclose(data.scaler.input_sd, x.std(0))
    assert float(data.scaler.target_sd) == pytest.approx(y.std())


def test_inverse():
    x, y = raw()
    data = from_arrays(x, y, standardize=True)
    scaler = data.scaler
    torch.testing.assert_close(scaler.inverse_inputs(data.inputs["x"]), torch.from_numpy(x), **EXACT)
    torch.testing.assert_close(scaler.inverse_target(data.observed), torch.from_numpy(y), **EXACT)
    torch.testing.assert_close(scaler.transform_inputs(torch.from_numpy(x)), data.inputs["x"])
    torch.testing.assert_close(scaler.transform_target(torch.from_numpy(y)), data.observed)
    assert float(scaler.inverse_scale(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(y.std())
    draws = torch.randn(5, 7)
    assert scaler.inverse_target(draws).dtype == torch.float32
    assert scaler.inverse_target(draws).shape == (5, 7)
    assert scaler.transform_target(torch.tensor([100_000])).dtype == torch.float64
    back = data.unscaled()
    assert back.scaler is None
    torch.testing.assert_close(back.observed, torch.from_numpy(y), **EXACT)


def test_several_targets_are_scaled_by_column():
    x, _ = raw()
    y = np.stack([3.0 * x[:, 0], x[:, 1] - 7.0], axis=1)
    data = from_arrays(x, y, standardize=True)
    assert data.scaler.target_mean.shape == (2,)
    assert data.observed.std(0, correction=0).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="column 2 of target 'y' is constant"):
        from_arrays(x, np.stack([x[:, 0], 0 * x[:, 0]], axis=1), standardize=True)


def test_zero_one_columns_stay(houses):
    data = from_frame(houses, "price", standardize=True, categories="one_hot")
    assert data.feature_names == ("size", "rooms", "garden", "city=Paris", "city=Rome")
    assert data.scaler.scaled == (True, True, False, False, False)
    assert data.inputs["x"][:, 2].tolist() == houses["garden"].tolist()
    assert data.scaler.input_mean[2:].tolist() == [0.0, 0.0, 0.0]
    assert data.scaler.input_sd[2:].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("y", [np.array([0, 1] * 10), np.array([0.0, 1.0] * 10), np.array([False, True] * 10)])
def test_zero_one_targets_stay(y):
    data = from_arrays(np.arange(20.0)[:, None], y, standardize=True)
    assert data.observed.tolist() == y.astype(float).tolist()
    assert not data.scaler.target_scaled
    assert data.num_classes == 2
    assert data.scaler.inverse_target(data.observed) is data.observed
    assert data.scaler.inverse_scale(data.observed) is data.observed


def test_integer_targets():
    x = np.arange(20.0)[:, None]
    classes = from_arrays(x, np.arange(20) % 4, standardize=True)
    assert classes.observed.dtype == torch.int64
    assert classes.num_classes == 4
    prices = from_arrays(x, 1000 + np.arange(20), standardize=True)
    assert prices.observed.dtype == torch.float64
    assert prices.num_classes is None
    assert prices.scaler.target_scaled
    ranks = from_arrays(x, np.arange(20), standardize=True)
    assert ranks.scaler.target_scaled
    inputs_only = from_arrays(x, 1000 + np.arange(20), standardize="inputs")
    assert inputs_only.observed.dtype == torch.int64
    assert inputs_only.inputs["x"].mean().abs() < 1e-12


def test_float32_is_kept_and_computed_in_float64():
    x, y = raw()
    # A float32 mean over values near 1e7 with sd 1 would be off by about 1.
    x32 = (x * [0.5, 10.0] + 1e7).astype(np.float32)
    data = from_arrays(x32, y.astype(np.float32), standardize=True)
    assert data.dtype == data.observed.dtype == torch.float32
    expected = (x32.astype(np.float64) - x32.astype(np.float64).mean(0)) / x32.astype(np.float64).std(0)
    np.testing.assert_allclose(data.inputs["x"], expected, atol=1e-6)


def test_constant_columns_are_refused_by_name():
    x, y = raw()
    x[:, 1] = 0.1
    with pytest.raises(ValueError, match=r"column 'b' is constant \(0.1 in all 200 rows\)"):
        from_arrays(x, y, feature_names=["a", "b"], standardize=True)
    with pytest.raises(ValueError, match="target 'price' is constant"):
        from_arrays(raw()[0], 0 * y, target_name="price", standardize=True)
    with pytest.raises(ValueError, match="too extreme"):
        from_arrays(np.array([[1e200], [-1e200]]), np.array([0.0, 2.0]), standardize=True)
    assert from_arrays(x, y).dim == 2


def test_split_learns_the_scale_from_the_first_part_only():
    x, y = raw(40)
    data = from_arrays(x, y, standardize=True)
    plain = from_arrays(x, y)
    train, test = data.split(0.75, seed=1)
    raw_train, raw_test = plain.split(0.75, seed=1)
    assert train.scaler is test.scaler
    np.testing.assert_allclose(train.scaler.input_mean, raw_train.inputs["x"].mean(0))
    np.testing.assert_allclose(train.scaler.target_sd, raw_train.observed.std(correction=0))
    assert train.inputs["x"].mean(0).abs().max() < 1e-10
    assert test.inputs["x"].mean(0).abs().max() > 1e-3
    torch.testing.assert_close(test.unscaled().inputs["x"], raw_test.inputs["x"], **EXACT)
    torch.testing.assert_close(test.unscaled().observed, raw_test.observed, **EXACT)

    # What the second part holds cannot move the first: the same rows with other values outside.
    _, rows = (part.observed for part in from_arrays(x, np.arange(40)).split(0.75, seed=1))
    x2 = x.copy()
    x2[rows.numpy()] += 100.0
    again, _ = from_arrays(x2, y, standardize=True).split(0.75, seed=1)
    torch.testing.assert_close(again.inputs["x"], train.inputs["x"], **EXACT)


def test_split_keeps_dtype_and_unscaled_columns(houses):
    frame = houses.loc[houses.index.repeat(4)].reset_index(drop=True)
    data = from_frame(frame, "price", standardize=True, categories="one_hot", dtype=torch.float32)
    train, _ = data.split(0.5, seed=0)
    assert train.dtype == train.observed.dtype == torch.float32
    assert train.scaler.scaled == data.scaler.scaled
    assert set(train.inputs["x"][:, 2:].unique().tolist()) == {0.0, 1.0}


def test_rare_category_may_be_constant_in_the_first_part():
    x = np.stack([np.arange(30.0), np.eye(30)[7]], axis=1)
    data = from_arrays(x, np.arange(30.0) ** 2, standardize=True)
    parts = [data.split(0.5, seed=seed)[0].inputs["x"][:, 1].unique().numel() for seed in range(8)]
    assert 1 in parts


def test_json_round_trip_is_exact():
    x, y = raw()
    for target in (y, np.arange(200) % 3, np.stack([y, 2 * x[:, 1]], 1)):
        scaler = from_arrays(x, target, standardize=True).scaler
        again = Scaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
        assert again.to_dict() == scaler.to_dict()
        assert again.feature_names == scaler.feature_names
        assert torch.equal(again.transform_inputs(torch.from_numpy(x)), scaler.transform_inputs(torch.from_numpy(x)))
        assert torch.equal(again.inverse_target(torch.ones(4, 2)), scaler.inverse_target(torch.ones(4, 2)))


def test_scaler_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="one mean, sd and flag for each of its 2 columns"):
        Scaler(("a", "b"), torch.zeros(1), torch.ones(2), (True, True))
    with pytest.raises(ValueError, match="both target_mean and target_sd"):
        Scaler(("a",), torch.zeros(1), torch.ones(1), (True,), target_mean=torch.tensor(0.0))
