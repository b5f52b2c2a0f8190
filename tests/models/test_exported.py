"""Exported models are the model: onnxruntime and torch give its logits, whatever the batch."""

import io
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise.models import Ensemble, MonteCarloDropout
from equipoise.models import exported as exporting
from equipoise.models.exported import METADATA, export

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return eq.nets.build("mlp", SHAPE, 3, seed=1, widths=(8,), normalize=((0.3,), (0.5,))).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(3))


def test_onnx_runs_elsewhere_and_says_what_it_takes(net, x, tmp_path):
    """Of an ensemble, whose reference is the mean of softmax in numpy, and of one network."""
    other = eq.nets.build("mlp", SHAPE, 3, seed=2, widths=(8,)).eval()
    with torch.no_grad():
        shares = [torch.softmax(member(x).double(), 1).numpy() for member in (net, other)]
    file = export(Ensemble([net, other]), tmp_path / "a.onnx", SHAPE, classes=["a", "b", "c"])
    session = onnxruntime.InferenceSession(file.read_bytes())
    (logits,) = session.run(None, {"x": x.numpy()})
    assert np.allclose(np.exp(logits), np.mean(shares, 0), atol=1e-6)
    about = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(about["classes"]) == ["a", "b", "c"] and json.loads(about["shape"]) == [1, 8, 8]
    assert about["input"] == "float32 in [0, 1]"


@pytest.mark.parametrize("to", ["torchscript", "torch.export"])
def test_torch_files_are_the_model_at_any_batch_size(net, x, tmp_path, to):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    content = export(net, tmp_path / "m.pt2", SHAPE, to, classes=["a", "b", "c"]).read_bytes()
    extra = {METADATA: ""}
    if to == "torchscript":
        with pytest.warns(DeprecationWarning):
            loaded = torch.jit.load(io.BytesIO(content), _extra_files=extra)
    else:
        loaded = torch.export.load(io.BytesIO(content), extra_files=extra).module()
    for batch in (x[:1], x):
        assert torch.allclose(loaded(batch), net(batch), atol=1e-6)
    assert json.loads(json.loads(extra[METADATA])["classes"]) == ["a", "b", "c"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.requires_grad for weight in net.parameters())


def test_probabilities_become_logits(x, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1)).eval()
    file = export(eq.Single(net, "probabilities"), tmp_path / "m.pt2", SHAPE, "torch.export")
    assert torch.allclose(torch.export.load(file).module()(x).exp(), net(x), atol=1e-6)


@pytest.mark.unchecked
def test_what_cannot_be_exported_is_refused_by_name(net, tmp_path):
    dropout = MonteCarloDropout(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)))
    with pytest.raises(eq.EquipoiseError, match="MonteCarloDropout cannot be exported"):
        export(dropout, tmp_path / "m.onnx", SHAPE)
    with pytest.raises(eq.EquipoiseError, match="DeepKernelGP cannot be exported"):
        features = {"name": "fc-resnet", "shape": [2], "classes": 2, "inducing": 4, "options": {}}
        export(eq.training.build_model(features), tmp_path / "m.onnx", (2,))
    with pytest.raises(eq.EquipoiseError, match="2 names for a model of 3 classes"):
        export(net, tmp_path / "m.onnx", SHAPE, classes=["a", "b"])
    with pytest.raises(eq.EquipoiseError, match="unknown to 'tflite'"):
        export(net, tmp_path / "m.onnx", SHAPE, "tflite")  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_the_model_is_not_written(net, tmp_path, monkeypatch):
    """A converter that doubles the logits."""
    write, read = exporting._FORMATS["torch.export"]
    monkeypatch.setitem(exporting._FORMATS, "torch.export", (write, lambda content, x: 2 * read(content, x)))
    with pytest.raises(eq.EquipoiseError, match=r"torch\.export file is not this model: its logits differ by up to"):
        export(net, tmp_path / "m.pt2", SHAPE, "torch.export")
    assert not (tmp_path / "m.pt2").exists()


def test_without_onnx_the_extra_is_named(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(eq.EquipoiseError, match=r"pip install 'equipoise\[onnx\]'"):
        export(net, tmp_path / "m.onnx", SHAPE)
