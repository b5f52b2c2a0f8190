"""Folders of photos as people have them: any layout, of mixed sizes, turned, of 16 bits, damaged, or twice."""

import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import MNIST, encoded, good, idx, image, make_content, write_folder, write_zip
from PIL import Image

import equipoise as eq
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.data import load


def photos(*folders: str, each: int = 10, top: str = "") -> dict[str, bytes]:
    """So many different images in every folder."""
    names = [f"{top}{folder}/{i}.png" for folder in folders for i in range(each)]
    return {name: image(i) for i, name in enumerate(names)}


@pytest.mark.parametrize("write", [write_folder, write_zip])
@pytest.mark.parametrize("top", ["", "flowers/", "flowers/flowers/"])
def test_a_share_of_each_class_is_held_out_where_there_is_no_split(
    tmp_path: Path, write: Callable[..., Path], top: str
) -> None:
    data = load(write(tmp_path / "d.zip", photos("rose", "tulip", each=11, top=top)), test_share=0.3)
    assert data.classes == ("rose", "tulip")
    assert [torch.bincount(split.y).tolist() for split in (data.train, data.test)] == [[8, 8], [3, 3]]
    assert "there is no test split: 6 of 22 samples, 0.3 of each class by file name, are for it" in data.notes
    assert data.sha256 == load(write_folder(tmp_path / "e", photos("rose", "tulip", each=11)), test_share=0.3).sha256


def test_further_images_hardly_change_what_is_held_out(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", photos("a", "b", each=50))
    before = load(path)
    write_folder(path, {"a/new.png": image(1000), "b/new.png": image(1001)})
    after = load(path)
    moved = sum(not any(x.equal(other) for other in after.test.x) for x in before.test.x)
    assert len(before.test) == len(after.test) == 20 and moved <= 2


@pytest.mark.parametrize(
    ("folders", "training", "validation", "tested"),
    [
        (("Train", "VAL", "test"), 4, 4, 4),
        (("TRAINING", "Validation", "Testing"), 4, 4, 4),
        (("train", "valid"), 2, 4, 2),
        (("train", "test"), 4, None, 4),
        (("train",), 2, None, 2),
    ],
)
def test_the_folders_of_the_splits_in_any_case(
    tmp_path: Path, folders: tuple[str, ...], training: int, validation: int | None, tested: int
) -> None:
    files = photos(*(f"{split}/{c}" for split in folders for c in "ab"), each=2)
    data = load(write_folder(tmp_path / "d", files))
    assert len(data.train) == training and len(data.test) == tested
    assert (data.valid is None) == (validation is None)
    if data.valid is not None:
        assert len(data.valid) == validation and f", {validation} validation and " in data.summary
        held_in, held_out = data.split_validation()
        assert held_in is data.train and held_out is data.valid
        if training > 2:
            assert len(data.split_validation(0.5)[1]) == training // 2


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = {f"{split}/{c}/{i}.png": encoded(np.full((3, 3), 20 * i + 7 * (c == "b") + (split == "test"), np.uint8))
             for split in ("train", "test") for c in "ab" for i in (1, 2, 10)}  # fmt: skip
    levels = (load(write_folder(tmp_path / "d", files)).train.x[:, 0, 0, 0] * 255).round().int().tolist()
    assert levels == [20, 40, 200, 27, 47, 207]


@pytest.mark.parametrize("names", ["{}", "images/{}", "images/{}.png"])
@pytest.mark.parametrize("table", ["train.csv", "labels.csv", "train_labels.csv"])
def test_a_table_may_name_the_classes(tmp_path: Path, table: str, names: str) -> None:
    name = {"{}": "{}", "images/{}": "{}.png", "images/{}.png": "images/{}.png"}[names]
    rows = [f"{name.format(f'p{i}')},{'cat' if i % 2 else 'dog'}" for i in range(8)]
    files = {f"images/p{i}.png": image(i) for i in range(9)}
    data = load(write_folder(tmp_path / "d", files | {table: "\n".join(["id,kind", *rows, "gone,cat"]).encode()}))
    assert data.classes == ("cat", "dog") and len(data.train) + len(data.test) == 8
    assert f"1 image that {table} does not name (images/p8.png)" in data.summary
    assert f"1 row of {table} without an image ({table}/gone)" in data.summary
    cats = {image_of(i) for i in range(1, 8, 2)}
    for x, y in zip(torch.cat([data.train.x, data.test.x]), torch.cat([data.train.y, data.test.y]), strict=True):
        assert ((x * 255).round().byte().numpy().tobytes() in cats) == (int(y) == 0)


def test_a_table_names_the_images_of_its_own_split(tmp_path: Path) -> None:
    """Else the labels of one split would be those of the images of the same number in another."""
    files = {f"{split}/{i}.png": image(i + 20 * (split == "val")) for split in ("train", "val") for i in range(8)}
    rows = ["id,label", *(f"{i},{'cat' if i % 2 else 'dog'}" for i in range(8))]
    tables = {"train.csv": "\n".join(rows).encode(), "val.csv": "\n".join([*rows[:-1], "7,dog"]).encode()}
    data = load(write_folder(tmp_path / "d", files | tables))
    assert data.valid is not None and len(data.train) + len(data.test) == len(data.valid) == 8
    cats = {image_of(i) for i in (21, 23, 25)}
    for x, y in zip(data.valid.x, data.valid.y, strict=True):
        assert ((x * 255).round().byte().numpy().tobytes() in cats) == (int(y) == 0)
    files = {f"{folder}/{i}.png": image(i) for folder in ("a", "a/b") for i in range(8)}
    with pytest.raises(EquipoiseError, match=r"labels.csv may mean a/0.png or a/b/0.png: name the images by their pa"):
        load(write_folder(tmp_path / "e", files | {"labels.csv": "\n".join(rows).encode()}))


def image_of(value: int) -> bytes:
    """The bytes of the pixels of `image(value)`, channels first."""
    pixels = np.random.default_rng(value).integers(0, 256, (4, 5, 3), np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()


def test_a_table_of_which_the_class_cannot_be_told(tmp_path: Path) -> None:
    table = "\n".join(["id,colour,shape", *(f"p{i},red,{'round' if i % 2 else 'square'}" for i in range(8))])
    path = write_folder(tmp_path / "d", {f"p{i}.png": image(i) for i in range(8)} | {"labels.csv": table.encode()})
    with pytest.raises(
        EquipoiseError, match=r"labels.csv has the columns id, colour, shape: say which .* --label-colu"
    ):
        load(path)
    assert load(path, label_column="shape").classes == ("round", "square")


def test_kaggles_unlabelled_test_images_are_counted(tmp_path: Path) -> None:
    files = photos("train/cat", "train/dog") | {"test/1.png": image(77)}
    with pytest.warns(EquipoiseWarning, match=r"1 not read: 1 image directly in test/, in no class"):
        data = load(write_folder(tmp_path / "d", files))
    assert len(data.train) == 16 and len(data.test) == 4


@pytest.mark.parametrize("end", ["", ".gz"])
def test_the_folders_of_torchvision(tmp_path: Path, end: str) -> None:
    content = make_content(10, (1, 5, 4))
    arrays = (content.x[:, 0], content.y, content.x_test[:, 0], content.y_test)
    raw = {f"MNIST/raw/{name}{end}": idx(array) for name, array in zip(MNIST, arrays, strict=True)}
    path = write_folder(tmp_path / "d", {name: gzip.compress(data) if end else data for name, data in raw.items()})
    data = load(path / "MNIST")
    assert np.array_equal(np.rint(data.train.x.numpy() * 255), content.x) and data.classes == tuple("0123456789")
    assert load(path / "MNIST" / "raw").sha256 == data.sha256
    with pytest.raises(EquipoiseError, match=r"MNIST/raw/train-images-idx3-ubyte.* is not the published file"):
        load("mnist", path, download=False)  # found there, and seen to be another one


@pytest.mark.parametrize(("size", "width", "height"), [(4, 4, 4), ("6x3", 6, 3), ("30x40", 30, 40)])
def test_images_of_mixed_sizes_are_resized_on_request(tmp_path: Path, size: int | str, width: int, height: int) -> None:
    sizes = [(20, 12), (9, 31), (8, 8), (9, 9), (13, 9), (40, 40)]
    path = write_folder(tmp_path / "d", {f"{'ab'[i % 2]}/{i}.png": image(i, size=s) for i, s in enumerate(sizes)})
    with pytest.raises(EquipoiseError, match=r"mixed sizes: a/0.png has 20 x 12 pixels .* such as --size 8\."):
        load(path)
    data = load(path, size=size)
    assert data.shape == (3, height, width) and data.preprocessing == {"size": str(size)}
    assert f"6 images resized and cropped to {width} x {height} pixels" in data.notes


def test_the_resized_image_is_that_of_pytorch(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
    files = {f"{split}/{c}/0.png": image(i, size=(8, 8)) for i, (split, c) in enumerate(["ra", "rb", "sa", "sb"])}
    files = {name.replace("r/", "train/").replace("s/", "test/"): data for name, data in files.items()}
    data = load(write_folder(tmp_path / "d", files | {"train/a/0.png": encoded(pixels)}), size=8)
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), (8, 13), mode="bilinear", antialias=True
    )  # the shorter side of 30 becomes 8, the longer one 12.5, rounded
    assert (data.train.x[0] * 255 - whole[0, :, :, 2:10]).abs().max() <= 1.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_the_camera_was_held(tmp_path: Path, orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    turned = [upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1]]  # as the standard numbers them
    stored = turned[(orientation - 1) % 4]
    stored = stored.swapaxes(0, 1) if orientation > 4 else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = {name: image(i, size=(5, 5)) for i, name in enumerate(good())}
    data = load(
        write_folder(
            tmp_path / "d", files | {"train/cat/0.png": encoded(np.ascontiguousarray(stored), exif=exif.tobytes())}
        )
    )
    assert np.array_equal(np.rint(data.train.x[0].numpy() * 255), upright.transpose(2, 0, 1))
    told = "1 image turned upright, as its EXIF orientation says"
    assert data.notes == ((told,) if orientation > 1 else ())


def test_images_of_16_bits_are_scaled(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 65535], [256, 257, 32767, 32768]], np.uint16)
    files = {name: encoded(np.full((2, 4), i, np.uint8)) for i, name in enumerate(good())}
    data = load(write_folder(tmp_path / "d", files | {"train/cat/0.png": encoded(levels)}))
    assert (data.train.x[0, 0] * 255).round().int().tolist() == [[0, 0, 1, 255], [1, 1, 127, 128]]
    assert data.notes == ("1 image with 16 bits a pixel, scaled to 8",)


def test_unreadable_images_are_left_out_on_request(tmp_path: Path) -> None:
    broken = {"train/cat/7.jpg": image(90, "JPEG")[:60], "test/dog/8.webp": b"?"}
    path = write_folder(tmp_path / "d", good() | broken)
    with pytest.raises(EquipoiseError, match=r"8.webp is not a readable image: .*, or leave such images out"):
        load(path)
    with pytest.warns(EquipoiseWarning, match=r"2 unreadable images left out \(test/dog/8.webp\)"):
        assert load(path, skip_unreadable=True).sha256 == load(write_folder(tmp_path / "e", good())).sha256
    lost = write_folder(tmp_path / "f", dict.fromkeys(good(), b"?"))
    with pytest.raises(EquipoiseError, match="f holds no readable image"):
        load(lost, skip_unreadable=True)


def test_images_in_both_splits_are_a_warning(tmp_path: Path) -> None:
    files = good() | {"test/cat/copy.png": image(2), "test/emu/copy.png": image(5)}
    with pytest.warns(
        EquipoiseWarning,
        match=r"2 of the 8 test samples are training samples as well \(test/cat/copy.png is train/dog/0.png\)",
    ):
        load(write_folder(tmp_path / "d", files))


def test_validation_data_lie_elsewhere(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", good())
    elsewhere = {f"{c}/{i}.png": image(50 + 2 * i + (c == "cat")) for c in ("cat", "emu") for i in range(3)}
    data = load(path, validation_data=write_folder(tmp_path / "v", elsewhere))
    assert data.valid is not None and Counter(data.valid.y.tolist()) == {0: 3, 2: 3}
    assert data.sha256 != load(path).sha256
    net = eq.nets.build("mlp", data.shape, classes=3, widths=(2,))
    recipe = eq.Recipe(epochs=1, valid_steps=1, device="cpu")
    run = eq.train(eq.methods.standard(), net, data, recipe)
    assert (run.data["n_train"], run.data["n_validation"], run.recipe["validation"]) == (6, 6, None)
    with pytest.raises(EquipoiseError, match=r"validation = 0.5 holds out training samples, but d has validation sam"):
        eq.train(eq.methods.standard(), net, data, replace(recipe, validation=0.5))
    write_folder(tmp_path / "w", elsewhere | {f"fox/{i}.png": image(60 + i) for i in range(2)})
    with pytest.raises(EquipoiseError, match="the validation data have the class fox, which 'd' has not"):
        load(path, validation_data=tmp_path / "w")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "big"}, r"size = 'big': expected pixels from 1 to 8192, as 64 or WIDTHxHEIGHT"),
        ({"size": 0}, r"size = '0': expected pixels"),
        ({"test_share": 1.0}, r"test_share = 1.0: expected a share between 0 and 1, such as 0.2"),
        ({"test_share": 0.3}, r"test_share = 0.3: the data have a test split of their own; leave it out"),
        ({"box": (0, 255)}, r"--box: bytes are divided by 255, to \[0, 1\]; that is for other numbers"),
        ({"box": (1, 0)}, r"box = 1 0: expected two numbers, the lower one first"),
        ({"keys": {"a": "b"}}, r"keys: 'a=b' does not say what an array is: expected ROLE=NAME, each role once, of x"),
        ({"siez": 64}, r"unknown option of load 'siez': did you mean 'size'"),
    ],
)
def test_choices_that_make_no_sense(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(EquipoiseError, match=message):
        load(write_folder(tmp_path / "d", good()), **options)


def test_a_published_dataset_leaves_nothing_to_choose() -> None:
    with pytest.raises(EquipoiseError, match="size, test_share: the dataset 'digits' is published as it is"):
        load("digits", size=16, test_share=0.5)
