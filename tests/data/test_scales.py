"""Pixels of any type and byte order: one scale, and questions where it is implausible."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import npz_arrays, told

from equipoise.core.errors import EquipoiseError
from equipoise.data import load


def test_black_and_white_bytes_and_floats_have_one_scale(tmp_path: Path) -> None:
    arrays = npz_arrays()
    black_and_white = np.uint8(arrays["x_train"] > 127)
    np.savez(tmp_path / "a.npz", **(arrays | {"x_train": black_and_white, "x_test": arrays["x_test"] / 255}))
    data = load(tmp_path / "a.npz")
    assert np.array_equal(data.train.x[:, 0].numpy(), black_and_white) and data.test.x.max() > 0.9
    assert data.notes == (
        "the training samples are bytes, taken as they are",
        "the test samples are floats, taken as they are",
    )


def test_bytes_and_floats_of_the_same_images_agree(tmp_path: Path) -> None:
    arrays = npz_arrays()
    np.savez(tmp_path / "a.npz", **(arrays | {"x_test": arrays["x_train"] / 255, "y_test": arrays["y_train"]}))
    data = load(tmp_path / "a.npz")
    assert torch.allclose(data.train.x, data.test.x, atol=1e-7)
    assert data.notes == (
        "the training samples are bytes, divided by 255",
        "the test samples are floats, taken as they are",
    )


def test_bytes_that_are_nearly_black_are_questioned(tmp_path: Path) -> None:
    arrays = npz_arrays()
    black_and_white = {name: np.uint8(arrays[name] > 127) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "a.npz", **(arrays | black_and_white))
    data = told(
        tmp_path / "a.npz", "no byte of the training and test samples is above 1: divided by 255 they are nearly"
    )
    assert data.train.x.max() == np.float32(1 / 255)
    np.savez(tmp_path / "b.npz", **(arrays | {"x_test": black_and_white["x_test"]}))
    told(tmp_path / "b.npz", "no byte of the test samples is above 1")


def test_floats_on_two_scales_are_questioned(tmp_path: Path) -> None:
    arrays = npz_arrays()
    np.savez(tmp_path / "a.npz", **(arrays | {"x_train": arrays["x_train"] / 255, "x_test": arrays["x_test"] / 255**2}))
    told(tmp_path / "a.npz", "the largest value of one split is 0.00", "two scales")


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_the_byte_order_changes_no_digest(tmp_path: Path, kind: str) -> None:
    arrays = npz_arrays() | {
        "x_train": np.linspace(0, 1, 24).reshape(8, 3),
        "x_test": np.linspace(0, 0.9, 24).reshape(8, 3),
    }
    found = []
    for order in "<>":
        swapped = {name: a.astype(order + (kind if name[0] == "x" else "i4")) for name, a in arrays.items()}
        np.savez(tmp_path / "a.npz", **swapped)
        found.append(load(tmp_path / "a.npz"))
    assert found[0].sha256 == found[1].sha256 and found[0].train.x.equal(found[1].train.x)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nextafter(np.float32(1), np.float32(2)), r"x has values from 0 to 1.00000012; expected .*rounding errors"),
        (-1e-9, r"x has values from -\S+e-10 to 0; expected \[0, 1\] \(scale them, or cut off rounding"),
        (255.0, r"x has values from 0 to 255; expected \[0, 1\] \(divide pixels of 0 to 255 by 255"),
        (1e300, r"x has values from 0 to inf; expected"),
    ],
)
def test_values_out_of_range_are_told_exactly(tmp_path: Path, value: float, message: str) -> None:
    x = np.zeros((8, 3))
    x[1, 1] = value
    np.savez(tmp_path / "a.npz", **(npz_arrays() | {"x_train": x, "x_test": np.zeros((8, 3))}))
    with pytest.raises(EquipoiseError, match=message):
        load(tmp_path / "a.npz")
