"""The commands predict, export and table: what they print and write, and what they refuse."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

import equipoise as eq
from equipoise.cli import main
from equipoise.core.rng import fold
from equipoise.data.single_images import read_image, read_inputs
from equipoise.evaluation import read_points
from equipoise.models.exported import METADATA
from equipoise.pretrained import find
from equipoise.results.provenance import provenance
from equipoise.results.records import AttackRecord, Evaluation, Run, load, save
from equipoise.results.seeds import but_for_seed

pytestmark = pytest.mark.unchecked
MODEL = "digits/udp-0.15"


@pytest.fixture
def digit(tmp_path, monkeypatch) -> Path:
    """The first test image as a PNG: digits have 17 grey levels, which 8 bits hold to within half a level."""
    monkeypatch.chdir(tmp_path)
    image = eq.data.load("digits").test.x[0, 0].numpy()
    Image.fromarray((255 * image).round().astype(np.uint8)).save("digit.png")
    return Path("digit.png")


def test_an_image_is_predicted_with_both_bounds_of_its_radius(digit, capsys):
    assert main(["predict", MODEL, str(digit), "--json", "--certified", "--out", "p.json"]) == 0
    out = capsys.readouterr().out
    record, end = json.JSONDecoder().raw_decode(out)
    assert "wrote p.json" in out[end:] and json.loads(Path("p.json").read_text()) == record
    (sample,) = record["samples"]
    net, _ = eq.load(MODEL)
    with torch.no_grad():
        logits = net(read_image(digit, (1, 8, 8))[0][None]).double()
    share = torch.softmax(logits, 1)
    assert sample["source"] == "digit.png" and sample["label"] == int(logits.argmax())
    assert sample["probability"] == pytest.approx(float(share.max()), abs=1e-5)
    assert sample["entropy"] == pytest.approx(float(-(share * share.log()).sum()), abs=1e-4)
    assert 0 < sample["certified"] <= sample["distance"] < 0.5
    x, y = read_image(digit, (1, 8, 8))[0][None], logits.argmax(1)
    attack = eq.attacks.pgd(sample["certified"] * 0.99, steps=20)
    assert not attack(net, x, y).success.any()


def test_a_table_of_arrays_and_resized_images(digit, capsys):
    np.savez("two.npz", x=eq.data.load("digits").test.x[:2].numpy())
    Image.new("RGB", (30, 20), (255, 0, 0)).save("red.jpg")
    assert main(["predict", MODEL, "two.npz", "red.jpg", "--no-radius", "--out", "p.csv"]) == 0
    out = capsys.readouterr().out
    assert "red.jpg: resized and cropped to 8 x 8 pixels" in out and "radius" not in out
    rows = list(csv.DictReader(io.StringIO(Path("p.csv").read_text())))
    assert [row["source"] for row in rows] == ["two.npz[0]", "two.npz[1]", "red.jpg"]


def test_orientation_channels_and_the_cut(tmp_path):
    """A picture whose left half is white, stored turned by 90 degrees as a camera does, in 9 x 3 pixels."""
    turned = Image.new("L", (3, 9))
    turned.paste(255, (0, 6, 3, 9))
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it clockwise by 90 degrees
    turned.save(tmp_path / "a.png", exif=exif)
    values, note = read_image(tmp_path / "a.png", (3, 3, 9))
    assert (
        note.endswith("turned upright, as its EXIF orientation says")
        and values.shape == (3, 3, 9)
        and torch.equal(values[0], values[2])
    )
    assert values[0, 0].tolist() == [1.0] * 3 + [0.0] * 6
    cut, note = read_image(tmp_path / "a.png", (1, 3, 3))  # the middle third
    assert "resized and cropped to 3 x 3 pixels" in note and cut.abs().max() == 0


def test_the_features_of_a_table_are_scaled_as_those_that_were_learnt(tmp_path):
    """A raw row becomes the input that the dataset makes of it."""
    rows = np.random.default_rng(0).normal(50, 20, (40, 3))
    lines = "\n".join(",".join(f"{v:.6f}" for v in row) + f",{i % 2}" for i, row in enumerate(rows))
    (tmp_path / "t.csv").write_text(f"a,b,c,label\n{lines}\n")
    made = eq.data.load(tmp_path / "t.csv")
    everything = torch.cat([made.train.x, made.test.x])
    np.save(tmp_path / "raw.npy", rows.round(6))
    values, _ = read_inputs(tmp_path / "raw.npy", (3,), made.preprocessing)
    assert torch.allclose(values.sort(0).values, everything.sort(0).values, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 3)), r"array of shape \(2, 3\): expected \(4,\)"),
        (np.full(4, 1.5), "values from 1.5 to 1.5"),
        (np.array(["a"] * 4), "values of type"),
    ],
)
def test_arrays_that_are_no_inputs(tmp_path, content, message):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(eq.EquipoiseError, match=message):
        read_inputs(tmp_path / "a.npy", (4,))


def test_refused_files(tmp_path, digit, capsys):
    with pytest.raises(eq.EquipoiseError, match="inputs of shape \\(4,\\), which are not images"):
        read_inputs(digit, (4,))
    np.savez(tmp_path / "a.npz", a=[1.0], b=[2.0])
    with pytest.raises(eq.EquipoiseError, match="arrays a, b; expected one of the name x"):
        read_inputs(tmp_path / "a.npz", (1,))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(eq.EquipoiseError, match=r"bad.png is not a readable image"):
        read_inputs(tmp_path / "bad.png", (1, 8, 8))
    assert main(["predict", MODEL]) == 2 and "predict needs INPUTS" in capsys.readouterr().err
    assert main(["predict", MODEL, "digit.png", "--out", "p.txt"]) == 2 and ".json or .csv" in capsys.readouterr().err


def test_export_writes_once(digit, capsys):
    assert main(["export", MODEL, "--to", "onnx", "--out", "m.onnx"]) == 0
    assert "float32 in [0, 1] of shape batch x 1 x 8 x 8" in capsys.readouterr().out
    x = eq.data.load("digits").test.x[:20]
    (logits,) = onnxruntime.InferenceSession("m.onnx").run(None, {"x": x.numpy()})
    with torch.no_grad():
        assert np.allclose(logits, eq.load(MODEL)[0](x).numpy(), atol=1e-4)
    before = Path("m.onnx").read_bytes()
    assert main(["export", MODEL, "--out", "m.onnx"]) == 2 and "add --overwrite" in capsys.readouterr().err
    assert Path("m.onnx").read_bytes() == before


@pytest.mark.filterwarnings("ignore")
def test_a_run_in_a_box_of_its_own(tmp_path, monkeypatch, capsys):
    """Predictions, files and pictures are in the range that the network was trained on."""
    monkeypatch.chdir(tmp_path)
    y = np.arange(60) % 2
    x = (-1 + 1.2 * y.reshape(-1, 1, 1, 1) + 0.3 * np.random.default_rng(0).random((60, 1, 4, 4))).astype(np.float32)
    np.savez("my.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    small = "--steps 1 --widths 4 --epochs 9 --valid-steps 1 --batch-size 8 --evaluate-examples 0 --device cpu --out r"
    assert main(["train", "pgd", "--data", "my.npz", "--box", "-1", "1", "--eps", "0.1", *small.split()]) == 0
    np.save("one.npy", x[40:42])
    assert main(["predict", "r", "one.npy", "--certified", "--out", "p.json"]) == 0
    (net, _), points = eq.load("r"), torch.from_numpy(x[40:42])
    for sample, point in zip(json.loads(Path("p.json").read_text())["samples"], points[:, None], strict=True):
        attack = eq.attacks.pgd(0.99 * sample["certified"], steps=20, box=eq.Box(-1, 1))
        assert 0 < sample["certified"] <= sample["distance"]
        assert not attack(net, point, net(point).argmax(1)).success
    Image.new("L", (4, 4)).save("a.png")
    assert main(["predict", "r", "a.png"]) == 2
    assert "takes inputs on another scale, of -1 to 1" in capsys.readouterr().err
    assert main(["export", "r", "--to", "torchscript", "--out", "m.pt"]) == 0
    assert "float32 in [-1, 1] of shape" in capsys.readouterr().out
    files = {METADATA: ""}
    torch.jit.load("m.pt", _extra_files=files)
    assert json.loads(json.loads(files[METADATA])["preprocessing"]) == {"box": [-1.0, 1.0]}
    words = ["--attacks", "pgd5", "--eps", "1.9", "--out", "e.json", "--save-images", "i"]
    assert main(["evaluate", "r", *words]) == 0
    (stored,) = read_points(Path("e.images.npz"))
    (file,) = Path("i").glob(f"*/{stored['rows'][0]:05}-*.png")
    assert np.abs(np.asarray(Image.open(file), float) - 127.5 * (1 + stored["x"][0, 0])).max() <= 0.5 + 1e-3


@pytest.fixture
def seeds(tmp_path, monkeypatch) -> list[str]:
    """Three runs that differ in their seed, and one that differs in its learning rate; accuracies are known."""
    monkeypatch.chdir(tmp_path)
    for name, seed, lr, right in (("a", 0, 0.1, 8), ("b", 1, 0.1, 6), ("c", 2, 0.1, 7), ("d", 0, 0.2, 5)):
        origin = provenance(seed, "cpu")
        net = {"name": "mlp", "seed": seed}
        run = Run({"name": "udp", "eps": 0.1}, {"lr": lr, "seed": seed}, net, {"sha256": "0", "classes": []}, origin,
                  status="finished")  # fmt: skip
        results = [AttackRecord("clean", "linf", 0.0, [True] * 10)]
        results += [AttackRecord("pgd", "linf", 0.1, [True] * right + [False] * (10 - right))]
        save(Path(name, "run.json"), run)
        save(Path(name, "evaluation.json"), Evaluation(name, {"name": "toy", "sha256": "0"}, results, origin))
    return list("abcd")


def test_seeds_are_one_row_with_the_interval_of_their_mean(seeds, capsys):
    assert main(["table", *seeds, "--csv"]) == 0
    rows = [row for row in csv.DictReader(io.StringIO(capsys.readouterr().out)) if row["attack"] == "pgd"]
    assert [row["seeds"] for row in rows] == ["3", "1"]
    half = 4.302652729696142 * 0.1 / 3**0.5  # t(0.975, 2 degrees of freedom), s = 0.1
    samples = binomtest(7, 10).proportion_ci(method="wilson")
    low, high = (float(np.hypot(half, end - 0.7)) for end in (samples.low, samples.high))
    expected = [0.7, 0.7 - low, min(0.7 + high, 1)]
    assert [float(rows[0][key]) for key in ("accuracy", "low", "high")] == pytest.approx(expected)
    assert float(rows[1]["accuracy"]) == 0.5 and rows[1]["n"] == "10"


def test_runs_on_other_scales_of_the_same_features_are_no_seeds_of_each_other(seeds):
    first, second = load("a/run.json"), load("b/run.json")
    assert isinstance(first, Run) and isinstance(second, Run) and but_for_seed(first) == but_for_seed(second)
    scaled = replace(second, data={**second.data, "preprocessing": {"offset": [1.0], "scale": [2.0]}})
    assert but_for_seed(first) != but_for_seed(scaled)


def test_latex_markdown_and_files(seeds, capsys):
    assert main(["table", "a", "d", "--latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}" and lines[2] == r"model & clean & pgd, linf 0.1 \\"
    assert lines[5].startswith("udp (d) & 100.0 [72.2, 100.0] & 50.0 [23.7, 76.3]")
    assert main(["table", *seeds, "--out", "t.md"]) == 0
    assert "| 3 | 100.0 [72.2, 100.0] | 70.0 [30.8, 100.0] |" in Path("t.md").read_text()
    assert main(["table", *seeds]) == 0 and "seeds" in capsys.readouterr().out
    assert main(["table", "a", "--latex", "--csv"]) == 2
    assert "--latex and --csv exclude each other" in capsys.readouterr().err
    assert main(["table", "a", "--out", "t.xls"]) == 2 and "unknown ending of --out '.xls'" in capsys.readouterr().err
    shutil.rmtree("b")
    assert main(["table", "b"]) == 2 and "b does not exist" in capsys.readouterr().err


def test_tables_of_evaluations_in_memory(seeds):
    record = eq.tabulate([find(MODEL)])
    assert record.to_frame()["attack"].tolist() == ["clean", "autoattack"]
    results = [AttackRecord("clean", "linf", 0.0, [True, False])]
    table = eq.tabulate([Evaluation("mine", {"name": "x"}, results, provenance(fold(0, 1), "cpu"))])
    assert table.to_frame().loc[0, ["model", "accuracy"]].tolist() == ["mine", 0.5]
