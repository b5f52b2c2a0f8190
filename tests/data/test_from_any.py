"""Data as other libraries hold them, given to `train` and `evaluate` as they are."""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

import equipoise as eq
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.data import from_any, inputs_and_labels

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (20, 3, 4, 5), np.uint8)
Y = np.arange(20) % 2
PICTURES = [Image.fromarray(np.ascontiguousarray(x.transpose(1, 2, 0))) for x in X]


class Photos(torch.utils.data.Dataset[Any]):
    """As torchvision's: items of an image and a number, and the names of the classes."""

    classes = ("cat", "dog")

    def __init__(self, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(PICTURES)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return PICTURES[i] if self.transform is None else self.transform(PICTURES[i]), int(Y[i])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(torch.from_numpy(X) / 255, Y, strict=True))


def rows(**columns: Any) -> datasets.Dataset:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    return datasets.Dataset.from_dict({"image": PICTURES, "label": Y.tolist(), **columns}, features)


TENSORS = TensorDataset(torch.from_numpy(X).float() / 255, torch.from_numpy(Y))


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (X.transpose(0, 2, 3, 1), Y),
        (X / 255, Y.astype(np.uint8)),
        (torch.from_numpy(X), torch.from_numpy(Y).int()),
        {"images": X, "labels": Y[:, None]},
        {"x_train": X, "y_train": Y},
        TENSORS,
        DataLoader(TENSORS, 7, shuffle=True, drop_last=True),
        iter(DataLoader(TENSORS, 6)),
        Photos(),
        DataLoader(Photos(), 8, shuffle=True),
        Photos(lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255),
        Stream(),
        DataLoader(Stream(), 8),
        rows(),
        datasets.DatasetDict(train=rows()),
    ],
    ids=lambda data: type(data).__name__,
)
def test_the_same_samples_whoever_holds_them(data: Any) -> None:
    read = from_any(data, test_share=0)
    assert torch.allclose(read.train.x, torch.from_numpy(X) / 255, atol=1e-7) and read.train.y.tolist() == Y.tolist()
    assert read.test is read.train and "no test samples were given" in read.notes
    named = isinstance(getattr(data, "dataset", data), Photos | datasets.Dataset | datasets.DatasetDict)
    assert read.classes == (("cat", "dog") if named else ("0", "1"))


def test_of_several_splits_each_has_its_own() -> None:
    whole, part = (X, Y), (X[:6] ^ 255, Y[:6])
    for data in ((whole, part), {"train": whole, "test": part}, datasets.DatasetDict(train=rows(), test=rows())):
        if isinstance(data, datasets.DatasetDict):
            with pytest.warns(EquipoiseWarning, match="20 of the 20 test samples are training samples as well"):
                read = from_any(data)
        else:
            read = from_any(data)
            assert len(read.test) == 6
            x, y = inputs_and_labels(data)
            assert x.equal(read.test.x) and y.equal(read.test.y)
        assert len(read.train) == 20
    held_out = from_any(whole, test_share=0.3)
    assert (len(held_out.train), len(held_out.test)) == (14, 6)


def test_the_numbers_of_names_are_those_of_all_splits() -> None:
    """Of classes that are missing among the test samples as well."""
    x = np.zeros((3, 2), np.float32)
    splits = {"train": (x, np.array(["a", "b", "c"])), "test": (x[:2], np.array(["c", "a"]))}
    assert inputs_and_labels(splits)[1].tolist() == [2, 0]


def test_a_sampler_of_a_part_is_followed() -> None:
    loader = DataLoader(TENSORS, 4, sampler=SubsetRandomSampler(range(8)))
    assert (
        len(from_any(loader, test_share=0).train) == len(from_any(Subset(TENSORS, range(8)), test_share=0).train) == 8
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("digits", r"data is a str: expected a pair \(x, y\) of arrays or tensors, a torch Dataset"),
        (X, r"data is a ndarray: expected a pair"),
        ({"pixels": X}, r"the data have pixels; expected a pair"),
        ((X, Y / 1.0), r"the data holds labels of type float64; expected whole numbers"),
        ((X, np.eye(2)[Y]), r"y has shape \(20, 2\): expected one class number for each sample, as y.argmax\(1\)"),
        ((X, Y[:5]), r"the data holds labels of shape \(5,\) for 20 images; expected one each"),
        ((X / 127.5 - 1, Y), r"the inputs range over -1 to 1: expected .* Leave Normalize out .*box=\(-1, 1\)"),
        ((X.astype(np.float32), Y), r"x has values from 0 to 255; expected .*divide pixels of 0 to 255 by 255"),
        ((X.astype(np.int64), Y), r"x has dtype int64; expected uint8"),
        ([(1, 2, 3)], r"a sample is a tuple of 3: expected a pair of inputs and label"),
        ([], r"there are no samples in the data"),
        (TensorDataset(torch.zeros(4, 2)), r"a sample is a tuple of 1: expected a pair"),
        (
            datasets.Dataset.from_dict({"a": [[0.1]], "b": [0]}),
            r"the dataset has the columns a \(\w+\), b \(Value\): say which .* columns=\('image', 'label'\)\)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told(data: Any, message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        from_any(data, test_share=0)


def test_random_transforms_are_a_warning() -> None:
    class RandomFlip:
        def __call__(self, image: Image.Image) -> Image.Image:
            return image

    with pytest.warns(EquipoiseWarning, match=r"random transforms, which are applied once: .* Recipe\(augment="):
        from_any(Photos(RandomFlip()), test_share=0)


def test_columns_are_named_where_there_are_several() -> None:
    table = datasets.Dataset.from_dict({"img": X[:4].tolist(), "coarse": [0, 1, 0, 1], "fine": [0, 0, 1, 1]})
    table = table.cast_column("img", datasets.Array3D((3, 4, 5), "uint8"))
    read = from_any(table, columns=("img", "fine"), test_share=0)
    assert read.train.y.tolist() == [0, 0, 1, 1] and read.shape == (3, 4, 5)
    with pytest.raises(EquipoiseError, match="the dataset has no column size, but img, coarse, fine"):
        from_any(table, columns=("img", "size"))


@pytest.mark.parametrize("data", [(X, Y), DataLoader(TENSORS, 5, shuffle=True), rows(), from_any(((X, Y), (X ^ 1, Y)))])
def test_train_and_evaluate_take_them_as_they_are(data: Any) -> None:
    net = eq.nets.build("mlp", (3, 4, 5), classes=2, widths=(4,))
    recipe = eq.Recipe(epochs=1, batch_size=8, valid_steps=1, device="cpu")
    run = eq.train(eq.methods.standard(), net, data, recipe)
    assert run.data["n_train"] == 18 and run.data["n_test"] == (20 if isinstance(data, eq.data.Dataset) else 0)
    attacks = [("fgsm", eq.attacks.fgsm(eps=0.1))]
    found = eq.evaluate(net, data, attacks)
    x, y = inputs_and_labels(data)
    assert [result.correct for result in found] == [result.correct for result in eq.evaluate(net, x, y, attacks)]
    assert [r.correct for r in eq.evaluate(net, x.numpy(), y.numpy(), attacks)] == [r.correct for r in found]


def test_a_box_of_ones_own() -> None:
    data = from_any((X / 127.5 - 1, Y), test_share=0, box=(-1, 1))
    assert data.box == (-1, 1) and "attacks stay within -1 to 1" in data.summary
    net = eq.nets.build("mlp", (3, 4, 5), classes=2, widths=(4,))
    attack = eq.attacks.pgd(eps=0.3, box=eq.Box(-1, 1))
    assert attack(net, data.train.x, data.train.y).x.min() >= -1
    method = eq.methods.pgd_at(eps=0.3, steps=1, box=eq.Box(-1, 1))
    recipe = eq.Recipe(epochs=1, batch_size=8, valid_steps=1, device="cpu")
    run = eq.train(method, net, data, recipe)
    assert run.data["preprocessing"] == {"box": [-1.0, 1.0]} and run.recipe["valid_eps"] == pytest.approx(16 / 255)
