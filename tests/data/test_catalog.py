"""The data sets that come by name."""

from __future__ import annotations

import pytest
import torch

from bayeszoo.data import available, load

SHIPPED = ["coin_flips", "diabetes", "digits"]


def test_available_names_shipped_data_and_image_sets():
    assert list(available()) == [*SHIPPED, "mnist", "fashion_mnist"]
    for line in available().values():
        assert line
        assert "\n" not in line


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_data_load_without_any_file(name):
    data = load(name)
    assert data.name == name
    assert data.origin
    assert data.licence


def test_coin_flips_persons(coin):
    data = load("coin_flips")
    assert len(data) == 48
    assert data.labels[:3] == ("1", "2", "3")
    assert data.observation_dim == "person"
    assert data.dtype == data.observed.dtype == torch.float64
    # The totals of the paper's abstract and table.
    assert float(data.inputs["total_count"].sum()) == 350_757
    assert float(data.observed.sum()) == 178_078
    assert data.observed[0] == 780
    assert "2310.04153" in data.origin
    assert set(data.bind(coin)) == {"x", "total_count", "num_data"}
    assert "48 persons" in repr(data)


def test_coin_flips_pooled():
    data = load("coin_flips", form="pooled")
    assert data.inputs["total_count"].tolist() == [350_757.0]
    assert data.observed.tolist() == [178_078.0]


def test_coin_flips_sequence():
    data = load("coin_flips", form="sequence", seed=1)
    assert data.observed.shape == (350_757,)
    assert data.observed.dtype == torch.float64
    assert float(data.observed.sum()) == 178_078
    assert "permutation" in data.note
    assert "seed 1" in data.note
    assert torch.equal(load("coin_flips", form="sequence", seed=1).observed, data.observed)
    assert not torch.equal(load("coin_flips", form="sequence").observed, data.observed)
    # In a random order the first tenth has the share of the whole: four standard errors of 35,075 flips.
    assert abs(float(data.observed[:35_075].mean()) - 178_078 / 350_757) < 4 * 0.5 / 35_075**0.5


def test_diabetes():
    data = load("diabetes")
    assert data.inputs["x"].shape == (442, 10)
    assert data.feature_names[:3] == ("age", "sex", "bmi")
    assert data.target_name == "progression"
    assert data.scaler.target_scaled
    assert data.dtype == torch.float64
    # Means of the published table, in years, kg/m^2 and points of the score.
    assert float(data.scaler.input_mean[0]) == pytest.approx(48.518, abs=5e-4)
    assert float(data.scaler.input_mean[2]) == pytest.approx(26.376, abs=5e-4)
    assert float(data.scaler.target_mean) == pytest.approx(152.133, abs=5e-4)
    raw = load("diabetes", standardize=False)
    assert raw.scaler is None
    assert raw.observed[0] == 151.0
    torch.testing.assert_close(data.encode(raw.inputs["x"])["x"], data.inputs["x"])
    assert "standardised inputs and target" in repr(data)


def test_digits():
    data = load("digits")
    assert data.inputs["x"].shape == (1797, 64)
    assert data.inputs["x"].dtype == torch.float32
    assert (data.inputs["x"].min(), data.inputs["x"].max()) == (0.0, 1.0)
    assert data.observed.dtype == torch.int64
    assert data.num_classes == 10
    assert data.observed.unique().tolist() == list(range(10))
    assert data.dim == 64


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coinflips", {}, r"there is no data set 'coinflips'; did you mean 'coin_flips'\?"),
        ("Digit", {}, r"did you mean 'digits'\?"),
        ("zebra", {}, r"there are coin_flips, diabetes, digits, mnist, fashion_mnist; for a file use bz.data.from_csv or"),
        ("coin_flips", {"form": "people"}, r"form must be 'persons', 'pooled' or 'sequence', not 'people'"),
        ("coin_flips", {"from": "persons"}, r"no option 'from'; did you mean 'form'\? it has form, seed"),
        ("coin_flips", {"form": "sequence", "seed": -1}, r"non-negative"),
        ("digits", {"standardize": True}, r"it has none"),
        ("fashon_mnist", {}, r"did you mean 'fashion_mnist'"),
        ("mnist", {"train": True}, r"data set 'mnist' has no option 'train'; it has split, folder"),
        ("diabetes", {"standardize": "all"}, r"standardize must be"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)
