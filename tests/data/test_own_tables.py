"""Arrays and tables of the user's own: their names, the split, the scale of features, and the box of the inputs."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit
from torch import nn

from equipoise.cli import main
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.data import Reading, load, load_as
from equipoise.data.ordering import held_out
from equipoise.evaluation import evaluate_dataset
from equipoise.results.records import Run
from equipoise.results.records import load as load_record

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (24, 5, 4), np.uint8), np.arange(24) % 3


@pytest.mark.parametrize(
    "names",
    [
        ("x", "y"), ("X", "y"), ("data", "target"), ("images", "labels"), ("arr_0", "arr_1"), ("features", "classes_"),
        ("pics:x", "kind:y"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_pair_of_arrays_without_a_split(tmp_path: Path, names: tuple[str, str], kind: str) -> None:
    x, y = (name.partition(":")[0] for name in names)
    keys = {role: name for name, _, role in (name.partition(":") for name in names) if role}
    keys |= {"y": "classes_"} if y == "classes_" else {}
    if kind == "npz":
        np.savez(tmp_path / "a.npz", **{x: X, y: Y, "other": np.zeros(2)})
        data = load(tmp_path / "a.npz", keys=keys)
        assert data.notes[0] == "arrays that were not read: other"
    else:
        np.save(tmp_path / f"{x}.npy", X)
        np.save(tmp_path / f"{y}.npy", Y)
        data = load(tmp_path / f"{x}.npy", keys=keys)
        assert data.sha256 == load(tmp_path, keys=keys).sha256
    assert len(data.train) == 18 and len(data.test) == 6
    assert "there is no test split: 6 of 24 samples, 0.2 of each class by number, are for it" in data.notes


@pytest.mark.parametrize(
    "names",
    [
        ("X_train", "y_train", "X_test", "y_test", "X_val", "y_val"),
        ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
        ("train_data", "train_target", "testing_data", "testing_target", "validation_data", "validation_target"),
    ],
)
def test_arrays_of_every_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    parts = [array for split in (slice(0, 12), slice(12, 18), slice(18, 24)) for array in (X[split], Y[split])]
    np.savez(tmp_path / "a.npz", **dict(zip(names, parts, strict=True)))
    data = load(tmp_path / "a.npz")
    assert data.valid is not None and data.notes == ()
    for split, y in ((data.train, parts[1]), (data.test, parts[3]), (data.valid, parts[5])):
        assert split.y.tolist() == y.tolist()


def test_texts_are_names_of_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=np.array(["c10", "c2", "b"])[Y])
    data = load(tmp_path / "a.npz")
    assert data.classes == ("b", "c2", "c10")
    np.savez(tmp_path / "b.npz", x=X, y=np.array([2, 1, 0])[Y], classes=np.array(data.classes))
    assert load(tmp_path / "b.npz").sha256 == data.sha256


@pytest.mark.parametrize(
    ("arrays", "keys", "message"),
    [
        (
            {"a": X, "b": Y},
            {},
            r"it has no array x_train, y_train; expected .*; other names are given as --keys",
        ),
        ({"a": X, "b": Y}, {"x": "c"}, r"it has no array c, but a, b; expected"),
        ({"a": X, "b": Y}, {"x": "a"}, r"it has no array y, but a, b; expected"),
        ({"x": X, "images": X, "y": Y}, {}, r"both x and images may be x: say which, as --keys x=images; expected"),
        ({"x_train": X, "y_train": Y, "x_test": X}, {}, r"it has no array y_test; expected"),
        ({"x": X, "y": Y[:9]}, {}, r"y holds labels of shape \(9,\) for 24 images"),
    ],
)
def test_arrays_that_cannot_be_told_apart(
    tmp_path: Path, arrays: dict[str, np.ndarray], keys: dict[str, str], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EquipoiseError, match=message):
        load(tmp_path / "a.npz", keys=keys)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.37, 0.99])
def test_what_is_held_out_is_stratified(share: float) -> None:
    y = np.repeat([0, 1, 2], [40, 7, 2])
    chosen = held_out(y, [str(i) for i in range(len(y))], share)
    counts = np.bincount(y[chosen], minlength=3)
    assert counts.min() >= 1 and (np.bincount(y) - counts).min() >= 1
    if share == 0.2:
        ((_, theirs),) = StratifiedShuffleSplit(1, test_size=counts.sum(), random_state=0).split(y, y)
        assert np.abs(counts - np.bincount(y[theirs], minlength=3)).max() <= 1
    order = RNG.permutation(len(y))
    assert np.array_equal(held_out(y[order], [str(i) for i in order], share), chosen[order])


ROWS = [[3.0, -1.5, 7], [4.0, 2.5, 7], [8.0, 0.5, 7], [6.0, 1.5, 7], [5.0, 0.0, 7], [3.5, 2.0, 7]]


def table(path: Path, separator: str = ",", head: str = "width,height,wheels,kind") -> Path:
    lines = [separator.join([*map(str, row), "bus" if i % 2 else "car"]) for i, row in enumerate(ROWS)]
    path.write_text("\n".join([head.replace(",", separator), *lines] if head else lines))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("head", ["width,height,wheels,kind", ""])
def test_features_of_a_table_are_scaled_by_their_bounds(tmp_path: Path, separator: str, head: str) -> None:
    data = load(table(tmp_path / "cars.csv", separator, head))
    assert data.name == "cars" and data.classes == ("bus", "car") and data.box == (0.0, 1.0)
    everything = np.array(ROWS)
    expected = (everything - everything.min(0)) / [5.0, 4.0, 1.0]  # the third feature is a constant
    rows = np.concatenate([data.train.x, data.test.x])
    assert np.allclose(np.sort(rows, 0), np.sort(expected, 0), atol=1e-6)
    assert f"the class is in the column '{'kind' if head else 'column 4'}'; 3 others are features" in data.notes
    assert "(3 to 8, -1.5 to 2.5, 7 to 7), so eps is a share of its range" in data.notes[-1]


def test_features_may_be_standardised_or_left_as_they_are(tmp_path: Path) -> None:
    path = table(tmp_path / "cars.csv")
    data = load(path, feature_scale="standard")
    assert np.allclose(data.train.x.mean(0), 0, atol=1e-6) and np.allclose(data.train.x[:, :2].std(0, False), 1)
    raw = data.train.x.numpy() * data.preprocessing["scale"] + data.preprocessing["offset"]
    plain = load(path, feature_scale="none")
    assert np.allclose(raw, plain.train.x, atol=1e-5) and plain.box == (-1.5, 8.0)
    assert load(path, box=(-10, 10)).train.x.equal(plain.train.x) and load(path, box=(-10, 10)).box == (-10, 10)
    assert data.box[0] <= float(data.train.x.min()) and data.sha256 == plain.sha256
    with pytest.raises(EquipoiseError, match=r"x has values from \S+ to 8; expected \[0, 2\]"):
        load(path, box=(0, 2))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\n1,2,3\n", {}, r"t.csv, row 3 has 3 cells, the first has 2: expected as many"),
        ("a,b,c\n1,x,u\n2,3,v\n", {}, r"t.csv, row 2, column 'b' holds 'x', which is no number: turn .*--skip-unreada"),
        ("a,b,c\n1,2,\n2,3,v\n", {}, r"row 2, column 'c' holds '', which is no class"),
        ("a,b,c\n1,nan,u\n", {}, r"row 2, column 'b' holds 'nan', which is no number"),
        ("a\n1\n", {}, r"t.csv has one column \('a'\): expected features and a class"),
        ("a,a,b\n1,2,u\n", {}, r"has two columns of the name 'a'"),
        ("a,b\n", {}, r"t.csv has no rows"),
        (",,\n", {}, r"t.csv has no rows"),
        ("a,b,c\n1,2,u\n", {"label_column": "d"}, r"unknown column of \S+t.csv 'd': choose one of a, b, c"),
        ("\xff,b\n", {}, r"t.csv is not a text in UTF-8"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(EquipoiseError, match=message):
        load(tmp_path / "t.csv", **options)


def test_names_of_another_shape_are_refused_as_numbers_are(tmp_path: Path) -> None:
    for kind in (np.arange(8) % 2, np.array(["a", "b"] * 4)):
        np.savez(tmp_path / "t.npz", x=np.zeros((8, 2), np.float32), y=kind.reshape(4, 2))
        with pytest.raises(EquipoiseError, match=r"y holds labels of shape \(4, 2\) for 8 images"):
            load(tmp_path / "t.npz")


def test_features_that_a_network_took_as_they_were_are_not_scaled(tmp_path: Path) -> None:
    """Not for another file, and not for validation, whose own bounds would be another scale."""
    lines = [f"0.{i},{'ab'[i % 2]}" for i in range(1, 9)]
    (tmp_path / "t.csv").write_text("\n".join(["x,label", *lines]))
    (tmp_path / "v.csv").write_text("\n".join(["x,label", *lines[:-1], "1.5,b"]))
    assert load(tmp_path / "t.csv").preprocessing == {}
    for read in (
        lambda: load(tmp_path / "t.csv", validation_data=tmp_path / "v.csv"),
        lambda: load_as(Reading(), tmp_path / "v.csv", preprocessing={}),
    ):
        with pytest.raises(EquipoiseError, match=r"x has values from \S+ to 1.5; expected \[0, 1\]"):
            read()


def test_a_record_on_another_scale_answers_no_request(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    for scale in ("bounds", "standard"):
        data = load(table(tmp_path / "cars.csv"), feature_scale=scale)
        if scale == "standard":
            with pytest.raises(EquipoiseError, match="preprocessing"):
                evaluate_dataset(net, data, [], target="net", out=tmp_path / "e.json")
        else:
            evaluate_dataset(net, data, [], target="net", out=tmp_path / "e.json")


def test_rows_without_numbers_are_left_out_on_request(tmp_path: Path) -> None:
    path = table(tmp_path / "cars.csv")
    clean = load(path)
    path.write_text(path.read_text() + "\n?,1,7,bus")
    data = load(path, skip_unreadable=True)
    assert data.notes[0] == "1 row of cars.csv left out for a cell that is no number (row 8, column 'width')"
    assert data.sha256 == clean.sha256


def test_a_folder_of_tables_has_their_splits(tmp_path: Path) -> None:
    for name in ("train.csv", "Test.csv", "val.csv"):
        table(tmp_path / name)
    with pytest.warns(EquipoiseWarning, match="6 of the 6 test samples are training samples as well"):
        data = load(tmp_path)
    assert data.valid is not None and [len(data.train), len(data.test), len(data.valid)] == [6, 6, 6]


def test_a_run_reads_its_data_again_as_it_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cars.csv"
    rows = [f"{a:.3f},{b:.3f},{'bus' if a > b else 'car'}" for a, b in np.random.default_rng(1).normal(0, 3, (40, 2))]
    path.write_text("\n".join(["width,height,kind", *rows]))
    data = ["--data", str(path), "--feature-scale", "standard", "--label-column", "kind", "--test-share", "0.4"]
    small = ["--net", "mlp", "--widths", "4", "--valid-steps", "1", "--device", "cpu", "--evaluate-examples", "0"]
    run, words = str(tmp_path / "run"), ["--eps", "0.3", "--steps", "1", "--epochs", "1"]
    assert main(["train", "pgd", *data, *small, *words, "--out", run]) == 0
    record = load_record(tmp_path / "run" / "run.json")
    assert isinstance(record, Run)
    low, high = record.data["preprocessing"]["box"]
    assert record.method["terms"][0]["at"]["geometry"]["box"] == {"kind": "Box", "low": low, "high": high}
    capsys.readouterr()
    evaluate = ["evaluate", run, "--attacks", "pgd2", "--eps", "0.3", "--device", "cpu", "--no-images"]
    assert main(evaluate) == 0
    assert f"attacks stay within {low:g} to {high:g}" in capsys.readouterr().out
    path.write_text("\n".join(["width,height,kind", *rows[:-1], "900,1,bus"]))
    assert main(evaluate) == 2
    assert "is not the data that" in capsys.readouterr().err
    assert main([*evaluate, "--data", str(path), "--out", str(tmp_path / "other.json")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the features are scaled as those that the network was trained on" in said
    assert "1 sample outside the valid range, moved to its edge" in said
