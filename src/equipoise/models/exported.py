"""Export of trained models for other programs: ONNX, TorchScript, `torch.export`; every file is checked after it is
written.
"""

import importlib
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import write_atomically
from equipoise.core.types import Predictive
from equipoise.models.ensemble import Ensemble
from equipoise.models.inference import predict
from equipoise.models.single import Single, as_predictive

Format = Literal["onnx", "torchscript", "torch.export"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torchscript": "model.torchscript.pt", "torch.export": "model.pt2"}
"""The usual name of a file of each format."""
METADATA = "equipoise.json"
"""Name of the metadata in a file of `torch.export` or TorchScript; an ONNX file has its entries as `metadata_props`."""

_TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit: rounding in float32 is about 1e-6 of it."""
_BATCHES = (1, 2, 5)  # sizes with which a file is checked


@checked_call()
def export(
    model: "nn.Module | Predictive",
    path: "Path | str",
    shape: Sequence[int],
    to: Format = "onnx",
    *,
    classes: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model to `path` in a format of other programs, check the file against PyTorch, and return the path.

    The file takes float32 inputs of shape (batch, *shape), any batch, in [0, 1] or in the `box` of `preprocessing`, and
    returns logits (batch, classes); of an `Ensemble` the logarithm of the mean probabilities. The names of the
    `classes`, the `shape` and the `preprocessing`, that of a `Dataset`, are in its metadata. Before it is written it is
    loaded again, by onnxruntime or by torch, and must predict the same classes, with logits that differ by at most 1e-4
    of the largest. The model stays as it is. Raises `EquipoiseError` for a model that cannot be exported, by name, if a
    package is missing, and if the check fails.
    """
    predictive, shape = as_predictive(model), tuple(shape)
    network = _network(predictive)
    generator = torch.Generator().manual_seed(0)
    low, high = (preprocessing or {}).get("box", (0.0, 1.0))
    batches = [low + (high - low) * torch.rand(size, *shape, generator=generator) for size in _BATCHES]
    device = next((weight.device for weight in predictive.module.parameters()), torch.device("cpu"))
    expected = [predict(predictive, batch.to(device)).scores.cpu() for batch in batches]
    outputs = expected[0].shape[1]
    require(not classes or len(classes) == outputs, f"{len(classes)} names for a model of {outputs} classes.")
    metadata = {
        "classes": json.dumps(list(classes or map(str, range(outputs)))),
        "shape": json.dumps(shape),
        "input": f"float32 in [{low:g}, {high:g}]",
        "output": "logits",
        **({"preprocessing": json.dumps(dict(preprocessing))} if preprocessing else {}),
    }
    write, read = _FORMATS[to]
    try:
        with _quiet():
            content = write(network, batches[-1], metadata)
            predicted = [read(content, batch) for batch in batches]
    except EquipoiseError:
        raise
    except Exception as error:  # whatever a converter does with a network it cannot take
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EquipoiseError(f"{_named(predictive)} cannot be exported to {to}: {reason[:300]}.") from error
    for here, there in zip(expected, predicted, strict=True):
        _check(here, there, to)
    return write_atomically(path, content)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what converters say of themselves, such as that torchvision is missing, from the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _named(predictive: Predictive) -> str:
    return type(predictive.module if isinstance(predictive, Single) else predictive).__name__


def _network(predictive: Predictive) -> nn.Module:
    """The model as one module that returns logits, on the CPU, in eval mode."""
    require(
        isinstance(predictive, Single | Ensemble),
        f"{_named(predictive)} cannot be exported: its prediction is random or has a state of its own, which other "
        "programs do not have; export one network or an ensemble.",
    )
    assert isinstance(predictive, Single | Ensemble)
    members = list(predictive.module) if isinstance(predictive, Ensemble) else [predictive.module]
    require(
        all(weight.dtype == torch.float32 for weight in predictive.module.parameters()),
        "a model whose weights are not float32 is not exported: convert it by model.float().",
    )
    network = _Logits([deepcopy(member).cpu() for member in members], predictive.outputs == "probabilities")
    return network.eval().requires_grad_(False)


class _Logits(nn.Module):
    """Logits of one network; of several the logarithm of their mean probabilities."""

    def __init__(self, members: Sequence[nn.Module], probabilities: bool) -> None:
        super().__init__()
        self.members, self.probabilities = nn.ModuleList(members), probabilities

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        logits = [self._of(member, x) for member in self.members]
        if len(logits) == 1:
            return logits[0]
        return torch.stack([log_softmax(each, 1) for each in logits]).logsumexp(0) - math.log(len(logits))

    def _of(self, member: nn.Module, x: Tensor) -> Tensor:
        output = member(x)
        output = output if isinstance(output, Tensor) else output.logits
        return output.clamp_min(torch.finfo(output.dtype).tiny).log() if self.probabilities else output


def _check(here: Float[Tensor, "batch classes"], there: Tensor, to: str) -> None:
    """Raise `EquipoiseError` unless the logits of the file, `there`, are those of PyTorch."""
    require(there.shape == here.shape, f"the {to} file returns shape {tuple(there.shape)}, not {tuple(here.shape)}.")
    allowed = _TOLERANCE * float(here.abs().max())
    difference = float((here - there).abs().max())
    top = here.topk(2, 1).values
    sure = top[:, 0] - top[:, 1] > 2 * allowed
    same = bool((here.argmax(1) == there.argmax(1))[sure].all())
    require(
        difference <= allowed and same,
        f"the {to} file is not this model: its logits differ by up to {difference:.3g}, allowed is {allowed:.3g}.",
    )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EquipoiseError(f"the export to onnx needs {name}: pip install 'equipoise[onnx]'.") from error


def _write_onnx(network: nn.Module, x: Tensor, metadata: dict[str, str]) -> bytes:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _package(name)
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.onnx.export(
        network, (x,), input_names=["x"], output_names=["logits"], dynamic_shapes=shapes, dynamo=True, verbose=False
    )
    assert program is not None
    proto = program.model_proto
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto.SerializeToString()


def _read_onnx(content: bytes, x: Tensor) -> Tensor:
    session = _package("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"x": x.numpy()})
    return torch.from_numpy(logits)


def _write_script(network: nn.Module, x: Tensor, metadata: dict[str, str]) -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, x), content, _extra_files={METADATA: json.dumps(metadata)})
    return content.getvalue()


def _read_script(content: bytes, x: Tensor) -> Tensor:
    return torch.jit.load(io.BytesIO(content))(x)


def _write_program(network: nn.Module, x: Tensor, metadata: dict[str, str]) -> bytes:
    content = io.BytesIO()
    program = torch.export.export(network, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata)})
    return content.getvalue()


def _read_program(content: bytes, x: Tensor) -> Tensor:
    return torch.export.load(io.BytesIO(content)).module()(x)


_FORMATS: dict[Format, tuple[Callable[..., bytes], Callable[..., Tensor]]] = {
    "onnx": (_write_onnx, _read_onnx),
    "torchscript": (_write_script, _read_script),
    "torch.export": (_write_program, _read_program),
}
