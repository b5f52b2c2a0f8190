"""Models that are only asked: functions of arrays, scikit-learn classifiers, ONNX files, web services.

A `BlackBox` gives scores or labels and no gradients. Attacks that need more than it gives refuse it.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.errors import EquipoiseError, kind_of, require, require_integer, unknown
from equipoise.core.files import read_bytes
from equipoise.core.rng import Streams
from equipoise.core.types import Answers, Points, Predict, Prediction, Weights
from equipoise.models.outputs import Outputs, as_logits

Function = Callable[[np.ndarray], Any]
"""A function of inputs of shape (n, channels, height, width) or (n, features), a numpy array in the data's range, to an
array of scores of shape (n, classes), or of labels of shape (n,)."""

_PROBED = 8  # samples by which it is seen what a function returns


class BlackBox:
    """A function of arrays as a predictive, without gradients.

    `outputs` says what the function returns: `logits` (any scores, of which the largest wins), `probabilities`, or
    `labels`, of which the prediction has scores of 1 for the label and -1 for the other classes. `name` and
    `fingerprint` say in records which function it is. Raises `EquipoiseError` for fewer than two classes, and at a
    call for an answer of another shape.
    """

    def __init__(
        self,
        function: Function,
        classes: int,
        outputs: Literal["logits", "probabilities", "labels"] = "logits",
        *,
        name: str = "",
        fingerprint: str = "",
    ) -> None:
        require(callable(function), f"function is {kind_of(function)}: expected a function of numpy arrays.")
        require_integer("classes", classes, 2)
        if outputs not in (*get_args(Outputs), "labels"):
            raise unknown("outputs", outputs, (*get_args(Outputs), "labels"))
        self.name = name or _name_of(function)
        self.outputs = outputs
        self.module: nn.Module = _Asked(_Question(function, classes, outputs, self.name), fingerprint)

    @property
    def answers(self) -> Answers:
        """What it gives to an attack: `scores`, or `labels` alone."""
        return "labels" if self.outputs == "labels" else "scores"

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return the function to a `Prediction` with one member; it has no weights and takes no random numbers."""
        return lambda x: Prediction(self.module(x)[None])

    def __repr__(self) -> str:
        return f"BlackBox({self.name}, {self.outputs})"


class _Asked(nn.Module):
    """The function as a module without parameters. The hash of its source or file, a buffer, tells it from others."""

    identity: Tensor

    def __init__(self, question: "_Question", fingerprint: str) -> None:
        super().__init__()
        self.question = question
        known = f"{question.name} {question.outputs} {fingerprint or _source_of(question.function)}"
        digest = hashlib.sha256(known.encode()).digest()
        self.register_buffer("identity", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, x: Points) -> Tensor:
        return self.question(x)


class _Question:
    """The function, asked with tensors. Copies of the model share it, whatever it refers to."""

    def __init__(self, function: Function, classes: int, outputs: str, name: str) -> None:
        self.function, self.classes, self.outputs, self.name = function, classes, outputs, name

    def __call__(self, x: Points) -> Tensor:
        answer = _array(self.function(x.detach().cpu().numpy()), self.name)
        require(
            answer.shape[:1] == (len(x),) and answer.dtype.kind in "biuf",
            f"{self.name} returned {_described(answer)} for {len(x)} inputs: expected scores of shape "
            f"({len(x)}, {self.classes}) or labels of shape ({len(x)},).",
        )
        if self.outputs == "labels":
            return self._of_labels(answer).to(x)
        columns = answer.reshape(len(x), -1)
        require(
            columns.shape[1] == self.classes or (columns.shape[1] == 1 and self.classes == 2),
            f"{self.name} returned {_described(answer)}: expected scores of {self.classes} classes.",
        )
        return as_logits(torch.from_numpy(columns).to(x), cast(Outputs, self.outputs))

    def _of_labels(self, answer: np.ndarray) -> Tensor:
        labels = answer.reshape(len(answer), -1)
        require(
            labels.shape[1] == 1 and bool((labels == labels.round()).all()),
            f"{self.name} returned {_described(answer)}: expected one label per input, an integer.",
        )
        low, high = int(labels.min()), int(labels.max())
        require(
            low >= 0 and high < self.classes,
            f"{self.name} returned label {low if low < 0 else high}: expected 0 to {self.classes - 1}.",
        )
        return 2.0 * torch.nn.functional.one_hot(torch.from_numpy(labels[:, 0].astype(np.int64)), self.classes) - 1


def from_callable(
    function: Function,
    samples: Points,
    classes: int | None = None,
    *,
    name: str = "",
    fingerprint: str = "",
) -> BlackBox:
    """Return a function of arrays as a `BlackBox`. What it returns for the first few `samples` says what it gives:
    labels, probabilities, or other scores. Labels do not tell how many `classes` there are.

    Raises `EquipoiseError` for an answer that is neither, and one for another number of classes.
    """
    require(isinstance(samples, Tensor) and len(samples) > 0, "from_callable needs some samples, a tensor of inputs.")
    name = name or _name_of(function)
    n = min(len(samples), _PROBED)
    try:
        given = function(samples[:n].cpu().numpy().copy())
    except Exception as error:
        shape = tuple(samples[:n].shape)
        reason = " ".join(str(error).split()).rstrip(".")
        raise EquipoiseError(
            f"{name} failed on an array of shape {shape}: {type(error).__name__}: {reason:.200}."
        ) from error
    answer = _array(given, name)
    require(
        answer.ndim in (1, 2) and len(answer) == n and answer.dtype.kind in "biuf",
        f"{name} returned {_described(answer)} for {n} inputs: expected scores of shape ({n}, classes) or labels of "
        f"shape ({n},).",
    )
    columns = answer.reshape(n, -1)
    if columns.shape[1] > 1:
        whole = bool((columns >= 0).all() and (np.abs(columns.sum(1) - 1) < 1e-3).all())
        found = columns.shape[1] if classes is None else classes
        return _labelled(function, found, "probabilities" if whole else "logits", name, fingerprint)
    if bool((columns == columns.round()).all()):
        require(classes is not None, f"{name} returns labels: say of how many classes, with classes=10.")
        return _labelled(function, cast(int, classes), "labels", name, fingerprint)
    require(
        classes in (None, 2),
        f"{name} returns one number per input, which is for 2 classes, not {classes}: return labels or one score per "
        "class.",
    )
    share = bool((columns >= 0).all() and (columns <= 1).all())
    return _labelled(function, 2, "probabilities" if share else "logits", name, fingerprint)


def _labelled(function: Function, classes: int, outputs: Any, name: str, fingerprint: str) -> BlackBox:
    return BlackBox(function, classes, outputs, name=name, fingerprint=fingerprint)


_METHODS: dict[str, Literal["logits", "probabilities", "labels"]] = {
    "predict_proba": "probabilities",
    "decision_function": "logits",
    "predict": "labels",
}
"""What a classifier of scikit-learn offers, the most informative first."""


def is_estimator(model: object) -> bool:
    """Return whether an object is a classifier in the manner of scikit-learn."""
    return (
        not isinstance(model, type | nn.Module) and callable(getattr(model, "predict", None)) and hasattr(model, "fit")
    )


def from_estimator(estimator: Any, classes: int | None = None, *, name: str = "") -> BlackBox:
    """Return a fitted classifier of scikit-learn as a `BlackBox`, by its `predict_proba`, `decision_function` or
    `predict`. It gets its inputs flattened to (n, features).

    Its labels `classes_` are the classes 0, 1, ... if they are such numbers, of which there may be more (`classes`),
    else they are numbered in their order. Raises `EquipoiseError` for one that is not fitted or no classifier.
    """
    name = name or type(estimator).__name__
    labels = getattr(estimator, "classes_", None)
    method = next((m for m in _METHODS if callable(getattr(estimator, m, None))), None)
    require(
        labels is not None and method is not None,
        f"{name} has no classes_, and predict_proba, decision_function or predict: give a fitted classifier.",
    )
    labels, method = np.asarray(labels), cast(str, method)
    numbered = labels.dtype.kind in "biuf" and bool((labels == labels.astype(np.int64)).all()) and labels.min() >= 0
    columns = labels.astype(np.int64) if numbered else np.arange(len(labels))
    classes = max(int(columns.max()) + 1, classes or 2)
    absent = 0.0 if method == "predict_proba" else -np.inf

    def ask(x: np.ndarray) -> np.ndarray:
        answer = np.asarray(getattr(estimator, method)(x.reshape(len(x), -1)))
        if method == "predict":
            return columns[np.searchsorted(labels, answer)]
        if answer.ndim == 1:  # of two classes the score of the second
            answer = np.stack([-answer / 2, answer / 2], 1)
        require(
            answer.shape[1] == len(columns),
            f"{name}.{method} gives {answer.shape[1]} columns for {len(columns)} classes; of an SVC with "
            "decision_function_shape='ovo' take 'ovr'.",
        )
        scores = np.full((len(x), classes), absent)
        scores[:, columns] = answer
        return scores

    import joblib

    return BlackBox(ask, classes, _METHODS[method], name=name, fingerprint=str(joblib.hash(estimator)))


def from_onnx(path: "Path | str", samples: Points, classes: int | None = None) -> BlackBox:
    """Return the model in an ONNX file as a `BlackBox` of inputs like `samples`; it runs on the CPU.

    Its input may have the channels last, and a fixed batch size. Of several outputs the first with floating-point
    numbers counts. Raises `EquipoiseError` without onnxruntime, for a file that cannot be read or is no such model,
    and for one of other inputs.
    """
    try:
        content = read_bytes(Path(path))
    except OSError as error:
        raise EquipoiseError(f"{path} cannot be read: {error.strerror or error}.") from error
    run = _OnnxFunction(content, str(path), tuple(samples.shape[1:]))
    return from_callable(run, samples, classes, name=str(path), fingerprint=hashlib.sha256(content).hexdigest())


class _OnnxFunction:
    """The prediction function of an ONNX file."""

    def __init__(self, content: bytes, name: str, shape: Sequence[int]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EquipoiseError(
                f"{name} needs onnxruntime, which is not installed: pip install 'equipoise[onnx]'."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for every fault
            raise EquipoiseError(f"{name} is no ONNX model that runs here: {str(error).splitlines()[0]}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        require(len(inputs) == 1, f"{name} has {len(inputs)} inputs: expected one, the images.")
        self._input = inputs[0].name
        self._output = next((o for o in outputs if o.type in _FLOATS and "tensor" in o.type), outputs[0]).name
        self._dtype = _FLOATS.get(inputs[0].type)
        require(self._dtype is not None, f"{name} takes {inputs[0].type}: expected floating-point numbers.")
        batch, *sides = inputs[0].shape
        self._batch = batch if isinstance(batch, int) else None
        orders = [None] + ([(0, 2, 3, 1)] if len(shape) == 3 else [])
        given = [shape, *([(*shape[1:], shape[0])] if len(shape) == 3 else [])]
        matching = [order for order, own in zip(orders, given, strict=True) if _is_like(sides, own)]
        require(len(matching) > 0, f"{name} takes inputs of shape {tuple(sides)}, the data have {tuple(shape)}.")
        self._order = matching[0]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = (x if self._order is None else x.transpose(self._order)).astype(self._dtype)
        if self._batch is None:
            return self._run(x)
        size = self._batch
        padded = np.concatenate([x, np.repeat(x[-1:], -len(x) % size, 0)])
        return np.concatenate([self._run(padded[i : i + size]) for i in range(0, len(padded), size)])[: len(x)]

    def _run(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run([self._output], {self._input: np.ascontiguousarray(x)})[0])


_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def _is_like(sides: Sequence[Any], shape: Sequence[int]) -> bool:
    """Whether the sides of an ONNX input, where a text is any number, are these."""
    return len(sides) == len(shape) and all(not isinstance(s, int) or s == n for s, n in zip(sides, shape, strict=True))


def _array(answer: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(answer.detach().cpu() if isinstance(answer, Tensor) else answer)
    except ValueError as error:  # rows of different lengths
        raise EquipoiseError(f"{name} returned {kind_of(answer)} that is no array: {error}.") from error


def _described(answer: np.ndarray) -> str:
    return f"an array of shape {answer.shape} and {answer.dtype}"


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _source_of(function: Any) -> str:
    """The source of a function, or of the class of a callable object; empty where it cannot be found."""
    try:
        return inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        return ""
