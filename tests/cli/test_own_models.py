"""Functions, classifiers and files on the command line: what they are taken for, and which attacks apply."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.cli import main

pytestmark = pytest.mark.unchecked
SOURCE = """
import numpy as np
import torch
from torch import nn
from sklearn.linear_model import LogisticRegression

WEIGHT = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def scores(images):
    return images.reshape(len(images), -1) @ WEIGHT


def labels(images, threshold=0.5):
    return scores(images).argmax(1)


class Softmax(nn.Module):
    def forward(self, x):
        return (torch.from_numpy(WEIGHT).T @ x.flatten(1).T).T.softmax(1)


def network(shape):
    return Softmax()


def several(*arrays):
    return scores(*arrays)


rng = np.random.default_rng(1)
fitted = LogisticRegression().fit(rng.random((60, 16)), rng.integers(3, size=60))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "askedfor.py").write_text(SOURCE)
    weight = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    x = np.random.default_rng(2).random((40, 1, 4, 4)).astype(np.float32)
    y = (x.reshape(40, -1) @ weight).argmax(1)
    np.savez(folder / "own.npz", x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
    return folder


def evaluated(folder: Path, monkeypatch, *words: str) -> dict:
    monkeypatch.chdir(folder)
    out = folder / "record.json"
    common = ["--data", "own.npz", "--eps", "0.1", "--out", str(out), "--overwrite"]
    assert main(["evaluate", words[0], *common, *words[1:]]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("name", "gives", "attacks"),
    [
        ("askedfor:scores", "scores", ["square", "hop-skip-jump"]),
        ("askedfor:labels", "labels alone", ["hop-skip-jump", "random-search"]),
        ("askedfor:fitted", "probabilities", ["square", "hop-skip-jump"]),
    ],
)
def test_what_is_asked_as_a_function(folder, monkeypatch, capsys, name, gives, attacks):
    record = evaluated(folder, monkeypatch, name, "--queries", "40")
    said = capsys.readouterr().out
    assert f"note: {name} is asked as a function: it gives {gives}, and no gradients." in said
    assert [r["attack"] for r in record["results"]] == ["clean", *attacks, "worst case"]
    for result in record["results"][1:3]:
        spent = result["queries"]
        assert max(spent) <= 40 + 6 and f"{sum(spent)}" in said, "and the clean point and the confirmations"
    assert main(["verify", str(folder / "record.json")]) == 0


def test_an_interrupted_evaluation_of_a_function_goes_on(folder, monkeypatch, capsys):
    import equipoise.evaluation.runs as runs

    words = ("askedfor:scores", "--queries", "30", "--batch-size", "8", "--resume")
    whole = evaluated(folder, monkeypatch, *words)
    blocks, calls = runs.evaluate_block, 0

    def interrupted(*args, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return blocks(*args, **options)

    (folder / "record.json").unlink()
    (folder / "record.images.npz").unlink()
    monkeypatch.setattr(runs, "evaluate_block", interrupted)
    with pytest.raises(BaseException):  # noqa: B017, as the command turns an interrupt into its own exit
        assert evaluated(folder, monkeypatch, *words) is None
    calls = 10
    again = evaluated(folder, monkeypatch, *words)
    assert calls == 12, "the first of three blocks was saved"
    assert again["digest"] == whole["digest"]


def test_probabilities_of_a_network_are_seen(folder, monkeypatch, capsys):
    record = evaluated(folder, monkeypatch, "askedfor:network", "--attacks", "fgsm")
    assert "note: it returns probabilities, not logits" in capsys.readouterr().out
    assert record["results"][0]["accuracy"] == 1


def test_the_kind_can_be_said(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = ["evaluate", "askedfor:several", "--data", "own.npz", "--eps", "0.1", "--attacks", "clean"]
    assert main(words) == 2
    assert "If it predicts itself, add --model-kind function." in capsys.readouterr().err
    assert main([*words, "--model-kind", "function", "--out", "several.json"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("askedfor:scores", "--attacks", "autoattack"), "autoattack needs gradients for apgd-ce, apgd-t, fab-t, and"),
        (("askedfor:labels", "--attacks", "square"), "Attacks that apply: hop-skip-jump, random-search, and transfer"),
        (
            ("askedfor:scores", "--attacks", "clean", "--queries", "9"),
            "queries = 9: no named attack has such a",
        ),
        (("askedfor:scores", "--checkpoint", "w.pt"), "askedfor:scores is asked as a function and has no weights to"),
    ],
)
def test_what_does_not_apply_is_refused(folder, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder)
    assert main(["evaluate", words[0], "--data", "own.npz", "--eps", "0.1", "--out", "no.json", *words[1:]]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_onnx_files(folder, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["z"])]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", floats, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("z", floats, ["n", 3])],
        [helper.make_tensor("w", floats, weight.shape, weight.flatten())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "linear.onnx"))
    record = evaluated(folder, monkeypatch, "linear.onnx", "--queries", "30")
    other = evaluated(folder, monkeypatch, "askedfor:scores", "--queries", "30")
    outcomes = [[result["correct"] for result in r["results"]] for r in (record, other)]
    assert outcomes[0] == outcomes[1] and record["results"][0]["accuracy"] == 1
    (folder / "none.onnx").write_bytes(b"no model")
    assert main(["evaluate", "none.onnx", "--data", "own.npz", "--eps", "0.1"]) == 2
    assert "none.onnx is no ONNX model that runs here" in capsys.readouterr().err


def test_weights_of_a_file_begin_a_training(folder, monkeypatch):
    from equipoise.cli.loaded_model import start_from
    from equipoise.nets import build

    net, other = (build("mlp", (1, 4, 4), 3, seed=seed, widths=(5,)) for seed in (0, 1))
    wrapped = {"state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}
    torch.save(wrapped, folder / "weights.pt")
    about = start_from(folder / "weights.pt", other, {})
    assert about["from"].endswith("weights.pt")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
