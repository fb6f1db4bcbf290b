"""CSV files, data frames and arrays; new rows are encoded like the old ones."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from bayeszoo.data import Schema, from_arrays, from_csv, from_frame


@pytest.fixture
def csv(tmp_path):
    def write(text, name="table.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_csv(csv, houses):
    path = csv(houses.to_csv(index=False), "house.csv")
    data = from_csv(path, target="price", features=["size", "rooms"])
    assert data.name == "house"
    assert data.origin == "house.csv"
    assert data.target_name == "price"
    assert data.feature_names == ("size", "rooms")
    assert data.inputs["x"].dtype == torch.float64
    assert data.inputs["x"].tolist() == houses[["size", "rooms"]].to_numpy().tolist()
    assert data.observed.dtype == torch.int64
    assert data.observed.tolist() == houses["price"].tolist()


def test_csv_first_hour(csv, houses):
    path = csv(houses.drop(columns="city").to_csv(index=False))
    data = from_csv(path, target="price", standardize=True)
    train, test = data.split(0.8, seed=0)
    assert data.dim == train.dim == test.dim == 3
    back = train.scaler.inverse_target(train.observed)
    assert set(back.round().long().tolist()) < set(houses["price"].tolist())


def test_csv_details(csv):
    data = from_csv(csv("\ufeff a, b ,y\n0.1, 2,3\n1e-3,4,5.5\n"), "y")
    assert data.feature_names == ("a", "b")
    assert data.inputs["x"].tolist() == [[0.1, 2.0], [0.001, 4.0]]
    data = from_csv(csv("a,y\n1,True\n2,False\n"), "y")
    assert data.observed.tolist() == [1.0, 0.0]
    assert data.class_names == ("False", "True")
    assert from_csv(csv("a,y,\n1,2,\n2,3,\n"), "y", features=["a"]).observed.tolist() == [2, 3]
    data = from_csv(csv('"a, b",y\n1,2\n3,4\n'), "y", dtype=torch.float32, name="other")
    assert data.feature_names == ("a, b",)
    assert data.dtype == torch.float32
    assert data.name == "other"


def test_one_hot_and_class_names(houses):
    data = from_frame(houses, "city", categories="one_hot")
    assert data.class_names == ("Berlin", "Paris", "Rome")
    assert data.num_classes == 3
    assert data.observed.tolist() == [2, 1, 0, 2, 0, 1]
    assert data.observed.dtype == torch.int64
    data = from_frame(houses, "city", categories="one_hot", standardize=True)
    assert data.observed.tolist() == [2, 1, 0, 2, 0, 1]
    data = from_frame(houses, "price", categories="one_hot")
    assert data.inputs["x"][:, 3:].tolist() == [[0, 1], [1, 0], [0, 0], [0, 1], [0, 0], [1, 0]]


def test_categorical_dtype_keeps_its_order():
    sizes = pd.Categorical(["small", "big", "mid", "small"], categories=["small", "mid", "big", "giant"])
    data = from_frame({"size": sizes, "y": [1.0, 2.0, 3.0, 4.0]}, "y", categories="one_hot")
    assert data.feature_names == ("size=mid", "size=big")
    codes = pd.Categorical([10, 20, 10])
    data = from_frame({"zip": codes, "y": [1.0, 2.0, 3.0]}, "y", categories="one_hot")
    assert data.feature_names == ("zip=20",)


def test_frames_of_other_kinds():
    frame = pd.DataFrame(
        {
            "nullable": pd.array([1, 2, 3], dtype="Int64"),
            "text_numbers": ["1.5", "2", "-3e2"],
            "objects": pd.Series([1, 2.5, 3], dtype=object),
            "flags": pd.Series([True, False, True], dtype=object),
            "y": [0.0, 1.0, 2.0],
        },
    ).set_axis([7, 7, 9], axis=0)
    data = from_frame(frame, "y")
    assert data.inputs["x"].tolist() == [[1, 1.5, 1, 1], [2, 2, 2.5, 0], [3, -300, 3, 1]]
    data = from_frame({1: [1.0, 2.0], "y": torch.tensor([3.0, 4.0])}, "y")
    assert data.feature_names == ("1",)


def test_arrays_dtypes():
    x, y = np.ones((3, 2), dtype=np.int32), np.array([1, 2, 3], dtype=np.int16)
    data = from_arrays(x, y)
    assert data.inputs["x"].dtype == torch.float64
    assert data.observed.dtype == torch.int64
    assert data.feature_names == ("x1", "x2")
    assert from_arrays(torch.ones(3, 2), torch.ones(3, dtype=torch.float64)).observed.dtype == torch.float32
    assert from_arrays(x, y.astype(np.float32)).observed.dtype == torch.float64
    assert from_arrays(x, y, dtype=torch.float32).dtype == torch.float32
    pictures = from_arrays(torch.ones(3, 1, 4, 4), torch.tensor([0, 1, 1]))
    assert pictures.schema is None
    assert pictures.inputs["x"].shape == (3, 1, 4, 4)
    assert from_arrays(x, np.ones((3, 2))).observed.shape == (3, 2)


def test_encode_repeats_the_table(houses):
    for standardize in (False, True, "inputs"):
        data = from_frame(houses, "price", standardize=standardize, categories="one_hot")
        assert torch.equal(data.encode(houses)["x"], data.inputs["x"])
        shuffled = houses[["city", "garden", "rooms", "size"]].iloc[[4, 1]]
        assert torch.equal(data.encode(shuffled)["x"], data.inputs["x"][[4, 1]])
    one = {"size": 99.0, "rooms": 4, "garden": 0, "city": "Berlin", "unknown": "ignored"}
    assert torch.equal(data.encode(one)["x"], data.inputs["x"][[4]])
    small = data.to(dtype=torch.float32)
    assert small.encode(houses)["x"].dtype == torch.float32
    train, _ = from_frame(houses, "price", standardize=True, categories="one_hot").split(0.7, seed=0)
    assert train.encode(houses)["x"].shape == (6, 5)


def test_encode_arrays():
    x, y = np.random.default_rng(0).normal(size=(9, 2)), np.arange(9.0)
    data = from_arrays(x, y, standardize=True)
    torch.testing.assert_close(data.encode(x[:3])["x"], data.inputs["x"][:3])
    torch.testing.assert_close(data.encode(torch.from_numpy(x))["x"], data.inputs["x"])
    named = data.encode({"x2": x[:, 1].tolist(), "x1": x[:, 0]})
    torch.testing.assert_close(named["x"], data.inputs["x"])


def test_schema_json_round_trip(houses):
    data = from_frame(houses, "price", standardize=True, categories="one_hot")
    again = Schema.from_dict(json.loads(json.dumps(data.schema.to_dict())))
    assert again == data.schema
    assert torch.equal(again.encode(houses, data.scaler)["x"], data.inputs["x"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"size": [1.0], "rooms": [2], "garden": [1]}, r"no column 'city'"),
        (
            {"sizes": [1.0], "rooms": [2], "garden": [1], "city": ["Rome"]},
            r"no column 'size'; did you mean 'sizes'",
        ),
        (
            {"size": [1.0, 2.0], "rooms": [2, 2], "garden": [1, 1], "city": ["Rome", "Oslo"]},
            r"'city' holds the unknown category 'Oslo' in row 2 .* only Berlin, Paris, Rome",
        ),
        ({"size": [None], "rooms": [2], "garden": [1], "city": ["Rome"]}, r"'size' has no value in row 1"),
        (
            {"size": ["big"], "rooms": [2], "garden": [1], "city": ["Rome"]},
            r"'size' holds text \('big' in row 1",
        ),
        ({"size": [np.inf], "rooms": [2], "garden": [1], "city": ["Rome"]}, r"'size' holds inf in row 1"),
        ({"size": [1.0], "rooms": [2], "garden": [1], "city": [None]}, r"'city' has no value in row 1"),
        ({"size": [], "rooms": [], "garden": [], "city": []}, r"no rows"),
        ({"size": [1.0, 2.0], "rooms": [2]}, r"lengths size 2, rooms 1"),
        (np.ones((2, 4)), r"'city' holds text, so the new rows must be a data frame"),
        ([[1.0]], r"must be a pandas DataFrame or a mapping from column names to lists, not a list"),
    ],
)
def test_encode_refusals(houses, rows, message):
    data = from_frame(houses, "price", categories="one_hot")
    with pytest.raises(ValueError, match=message) as caught:
        data.encode(rows)
    assert "\n" not in str(caught.value)


def test_encode_array_refusals():
    data = from_arrays(np.ones((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), but \(N, 2\) is needed, with the columns x1, x2"):
        data.encode(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"column 'x2' of the table holds NaN in row 1"):
        data.encode(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, r"table.csv is empty"),
        ("a,y\n", {}, r"no rows"),
        ("a,y\n1,2\n", {"target": "yy"}, r"no column 'yy'; did you mean 'y'\? it has a, y"),
        ("a,b,y\n1,2,3\n", {"features": ["a", "d"]}, r"no column 'd'"),
        ("a,b,y\n1,2,3\n", {"features": "a"}, r"features must be a list"),
        ("a,b,y\n1,2,3\n", {"features": ["a", "a"]}, r"each once"),
        ("a,b,y\n1,2,3\n", {"features": []}, r"at least one column"),
        ("a,b,y\n1,2,3\n", {"features": ["a", "y"]}, r"both the target and a feature"),
        ("y\n1\n", {}, r"at least one column"),
        ("a,y\n1,2\n,3\n", {}, r"column 'a' has no value in row 2"),
        ("a,y\n1,2\n4,NA\n", {}, r"column 'y' has no value in row 2"),
        ("a,y\n1,2\n2,3\ninf,4\n", {}, r"column 'a' holds inf in row 3"),
        ("a,y\n1,2\n2,-inf\n", {}, r"column 'y' holds -inf in row 2"),
        ("a,y\n1,2\n2,3\n12O,4\n", {}, r"column 'a' has text among its numbers: '12O' in row 3"),
        ("a,y\n1,2\n2,3\n12O,4\n", {"categories": "one_hot"}, r"text among its numbers: '12O' in row 3"),
        ("a,y\nred,2\nblue,3\n", {}, r"column 'a' holds text \('red' in row 1.*categories='one_hot'"),
        ("a,y\nred,2\nred,3\n", {"categories": "one_hot"}, r"column 'a' holds 'red' in every row"),
        ("a,y\n1,yes\n2,no\n", {}, r"target 'y' holds text \('yes' in row 1.*class labels"),
        (
            "a,y\n1,yes\n2,3\n",
            {"categories": "one_hot"},
            r"column 'y' has text among its numbers: 'yes' in row 1",
        ),
        ("a,y\n1,2\n3,4,5\n", {}, r"not a readable CSV file \(Expected 2 fields in line 3, saw 3\)"),
        ("a,y\n1,2,3\n3,4,5\n", {}, r"more cells than its header line"),
        ("a,a=2,y\n1,2,3\n1,3,4\n", {"standardize": True}, r"column 'a' is constant"),
        ("a,y\n1,2\n2,3\n", {"standardize": "yes"}, r"standardize must be True, False or 'inputs'"),
        ("a,y\n1,2\n2,3\n", {"categories": "dummy"}, r"categories must be None or 'one_hot'"),
        ("a,y\n1,2\n2,3\n", {"dtype": torch.int64}, r"dtype must be a floating dtype"),
        ("a,y\n1,2\n70000,3\n", {"dtype": torch.float16}, r"column 'a' of the table holds Inf in row 2"),
        ("a,a=x,y\nx,1,2\nw,1,3\n", {"categories": "one_hot"}, r"two columns of input 'x' are named 'a=x'"),
    ],
)
def test_csv_refusals(csv, text, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_csv(csv(text), **({"target": "y"} | options))
    assert "\n" not in str(caught.value)


def test_csv_missing_or_not_text(csv, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*nowhere.csv'"):
        from_csv(tmp_path / "nowhere.csv", "y")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        from_csv(tmp_path, "y")
    with pytest.raises(ValueError, match="not a readable CSV file"):
        from_csv(csv("straße,y\n1,2\n", encoding="latin-1"), "y")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            {"a": pd.to_datetime(["2020-01-01", "2020-01-02"]), "y": [1, 2]},
            r"column 'a' has dtype datetime64",
        ),
        ({"a": [1j, 2j], "y": [1, 2]}, r"column 'a' has dtype complex128"),
        (pd.DataFrame([[1, 2, 3]], columns=["a", "a", "y"]), r"two columns named 'a'"),
        ({"a": [1, 2], "y": [1]}, r"lengths a 2, y 1"),
        (np.ones((2, 2)), r"must be a pandas DataFrame .*from_arrays"),
        ({"a": pd.array([1, None], dtype="Int64"), "y": [1, 2]}, r"column 'a' has no value in row 2"),
        ({"a": [True, None], "y": [1, 2]}, r"column 'a' has no value in row 2"),
    ],
)
def test_frame_refusals(frame, message):
    with pytest.raises(ValueError, match=message):
        from_frame(frame, "y")


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (np.ones(3), np.ones(3), {}, r"X has shape \(3,\), but \(N, D\) is needed"),
        (np.ones((3, 1)), np.ones((3, 1)), {}, r"y has shape \(3, 1\), but \(N,\) is needed"),
        (np.ones((3, 1)), np.float64(1.0), {}, r"y has shape \(\)"),
        (np.ones((3, 1)), np.ones(2), {}, r"observed 'y' has 2 rows, but input 'x' has 3"),
        (np.ones((0, 1)), np.ones(0), {}, r"input 'x' is empty"),
        ([[1.0]], np.ones(1), {}, r"X is a list"),
        (pd.DataFrame({"a": [1]}), np.ones(1), {}, r"X is a DataFrame.*from_frame"),
        (np.ones((2, 1)), np.array(["a", "b"]), {}, r"y has dtype <U1"),
        (np.ones((2, 1), dtype=object), np.ones(2), {}, r"X has dtype object"),
        (
            np.array([[1.0], [np.nan]]),
            np.ones(2),
            {"feature_names": ["age"]},
            r"column 'age' .* NaN in row 2",
        ),
        (
            np.ones((2, 1)),
            np.array([1.0, np.inf]),
            {"target_name": "bmi"},
            r"observed 'bmi' holds Inf in row 2",
        ),
        (np.ones((2, 2)), np.ones(2), {"feature_names": ["age"]}, r"feature_names has 1 names"),
        (np.ones((2, 2)), np.ones(2), {"feature_names": "ab"}, r"feature_names must be a list"),
        (np.ones((2, 1, 1)), np.ones(2), {"standardize": True}, r"need a table of shape \(N, D\)"),
    ],
)
def test_array_refusals(x, y, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_arrays(x, y, **options)
    assert "\n" not in str(caught.value)
