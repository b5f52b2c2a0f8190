"""Results as plain data: what was run, on what, with which outcome. JSON in and out, no torch.

Everything a report shows, a comparison cites or an audit recomputes is one of these records. Files are written
atomically: a reader sees the old file or the new one, never half of one.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import advice, folder_made, plain_bytes, plain_json, reason
from equipoise.results.statistics import wilson

SCHEMA = 1


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from: enough to run it again."""

    command: str
    """The command line, or the call."""
    seed: int
    """The seed every random draw was derived from."""
    versions: Mapping[str, str]
    """Versions of equipoise, python, torch and numpy."""
    commit: str | None
    """Commit of the source tree it ran from, with `+` if it had changes; None outside a repository."""
    device: str
    """What it ran on, in words."""
    threads: int
    """Threads torch used."""
    date: str
    """UTC, ISO 8601."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What was typed, as data: the name of the command (`command`) and every option. Empty for a call from Python, and
    in records of earlier versions."""


class _Outcomes:
    """What follows from the outcome of each sample."""

    correct: Sequence[bool]
    rates: Sequence[float] = ()

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly, in [0, 1]; of a random model, the mean over samples and draws."""
        return sum(self.rates or self.correct) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`; of a random model a conservative one, with the samples as trials."""
        return wilson(min(sum(self.rates or self.correct), self.n), self.n)


@dataclass(frozen=True)
class AttackResult(_Outcomes):
    """What one attack did to a model at one radius. `attack = "clean"` with `eps = 0` is accuracy without an attack."""

    attack: str
    """Name, e.g. `clean`, `fgsm`, `pgd`, or `worst case` over the attacks at one radius."""
    norm: str
    """`linf`, `l2` or `l1`."""
    eps: float
    """Radius of the ball, in pixel units of [0, 1]."""
    correct: Sequence[bool]
    """Per sample, in the order of the data: still classified correctly (by a random model, in at least
    half of the draws)."""
    distance: Sequence[float | None] = ()
    """Per sample: distance of the reported adversarial example, None where the attack failed."""
    prediction: Sequence[int] = ()
    """Per sample: the class predicted at the reported point, in float32 and eval mode."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter of the attack."""
    winner: Sequence[str | None] = ()
    """Per sample: the name of the attack, or of the part of a composite one, that fooled the model; None if none did,
    `clean` if it was wrong without an attack."""
    iteration: Sequence[int | None] = ()
    """Per sample: after how many steps of its attempt the winner reached the reported point."""
    queries: Sequence[int] = ()
    """Per sample: gradient and forward evaluations spent."""
    evaluations: int = 0
    """The same, summed over the samples."""
    nan_gradients: int = 0
    """Steps, summed over the samples, whose gradient held a NaN or an infinity."""
    zero_gradients: int = 0
    """Steps, summed over the samples, whose gradient was exactly zero."""
    seconds: float = 0.0
    """Wall-clock time."""
    rates: Sequence[float] = ()
    """Of a random model, per sample: the share of fresh draws in which it classifies the reported point correctly."""
    choice: Sequence[float] = ()
    """The same over as many other draws, by which the worst of several attacks is chosen."""
    not_finite: int = 0
    """Samples whose prediction at the reported point is not finite (NaN): neither right nor fooled."""


@dataclass(frozen=True)
class CorruptionResult(_Outcomes):
    """What one corruption of the images did to a model, on the samples of an evaluation."""

    corruption: str
    """Name, e.g. `fog`."""
    correct: Sequence[bool]
    """Per sample, in the order of the data: classified correctly."""
    prediction: Sequence[int]
    """Per sample: the class predicted, in float32 and eval mode."""
    source: str = ""
    """Where the images come from: empty if they were made from the seed, else the SHA-256 of the published ones."""


@dataclass(frozen=True)
class MeanResult:
    """The mean accuracy over several corruptions of the same samples."""

    results: Sequence[CorruptionResult]
    """One per corruption, at least one."""

    @property
    def n(self) -> int:
        """Number of samples; each counts once, with the share of the corruptions under which it is right."""
        return self.results[0].n

    @property
    def accuracy(self) -> float:
        """Mean of the accuracies, in [0, 1]."""
        return sum(sum(r.correct) for r in self.results) / (self.n * len(self.results))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy` for n samples, not n per corruption: what one sample withstands is no
        independent news of what it withstands next.
        """
        return wilson(self.accuracy * self.n, self.n)


@dataclass(frozen=True)
class Flag:
    """A reason to doubt a number, with the figure that raised it."""

    name: str
    """What is suspected, e.g. `randomised model`."""
    figure: str
    """What was measured, e.g. `logits change by up to 0.4 between two calls, on 64 of 64 samples`."""
    advice: str
    """What to do."""

    def __str__(self) -> str:
        return f"{self.name}: {self.figure}; {self.advice}"


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one model, clean and under attacks, on one set of samples."""

    target: str
    """The run directory or `package.module:factory` that was evaluated."""
    data: Mapping[str, Any]
    """Name, SHA-256 of the content, split and number of samples."""
    results: Sequence[AttackResult]
    """One entry per attack and radius, and the worst case per radius."""
    provenance: Provenance
    """How to get it again."""
    weights: str = "best"
    """Which weights of a run: `best` or `last`."""
    warnings: Sequence[str] = ()
    """What the reader should know before citing a number."""
    flags: Sequence[Flag] = ()
    """Reasons to doubt the numbers."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """SHA-256 of the weights and buffers (`sha256`) and number of parameters."""
    index: Sequence[int] = ()
    """Position of each sample in the order of the evaluation; the rest belong to other shards."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """File of the stored adversarial images, beside the record, and its SHA-256; empty if none were stored."""
    corruptions: Sequence[CorruptionResult] = ()
    """Accuracy on corrupted images of the same samples; empty if none were asked for."""

    @property
    def corrupted(self) -> MeanResult | None:
        """The mean over the corruptions, None without any."""
        return MeanResult(self.corruptions) if self.corruptions else None


@dataclass(frozen=True)
class Run:
    """A training run: what was asked for and what came out (`run.json` of a run directory).

    Beside it lie `metrics.jsonl` (one line per epoch), `best.safetensors`, `last.safetensors`, `evaluation*.json`
    and `samples.npz` (arrays `clean`, `udp`, `pgd`, `judged` of shape (n, channels, height, width) in [0, 1], `labels`,
    for each of the four its `_prediction`, and for the perturbed ones their `_norm` and `_eps`).
    """

    method: Mapping[str, Any]
    """Name, the sum of terms in words, and every hyper-parameter."""
    recipe: Mapping[str, Any]
    """Optimiser, schedule, epochs and everything else of the training loop."""
    net: Mapping[str, Any]
    """Name and arguments of the network, number of parameters."""
    data: Mapping[str, Any]
    """Name, SHA-256, class names, shape, number of training, validation and test samples."""
    provenance: Provenance
    """How to get it again."""
    status: str = "running"
    """`running`, `finished`, `stopped early` or `failed: reason`."""
    best: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the epoch with the best validation robust accuracy."""
    last: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last epoch."""
    alarms: Sequence[str] = ()
    """Signs of trouble seen while training, e.g. catastrophic overfitting."""
    seconds: float = 0.0
    """Wall-clock time of the training."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file of weights."""
    words: Sequence[str] = field(default_factory=list)
    """The words of the command line with which `--resume` goes on, from the method on; empty for a run from Python."""


Record = Evaluation | Run
_KINDS: dict[str, type[Record]] = {"evaluation": Evaluation, "run": Run}


def to_json(record: Record) -> dict[str, Any]:
    """The record as JSON-ready data, with its kind, schema number, and each evaluation result's summary figures.

    `corruptions` and the options of the provenance are there only if there are any, so that records without them stay
    as they always were.
    """
    kind = next(name for name, cls in _KINDS.items() if isinstance(record, cls))
    data = {"kind": kind, "schema": SCHEMA, **asdict(record)}
    if not record.provenance.options:
        del data["provenance"]["options"]
    if isinstance(record, Evaluation):
        for name in ("results", "corruptions"):
            for entry, result in zip(data[name], getattr(record, name), strict=True):
                for seldom in ("rates", "choice", "not_finite"):
                    if not entry.get(seldom, True):
                        del entry[seldom]
                entry.update(figures(result))
        if record.corrupted is None:
            del data["corruptions"]
        else:
            data["corrupted"] = figures(record.corrupted)
    return data


def figures(result: AttackResult | CorruptionResult | MeanResult) -> dict[str, Any]:
    """What follows from the outcomes: `n`, `accuracy` and `interval`."""
    return {"n": result.n, "accuracy": result.accuracy, "interval": list(result.interval)}


def digest(evaluation: Evaluation) -> str:
    """SHA-256 of everything a record claims, and its seed: all but when and where it ran, its command, and how long it
    took. Two runs of one evaluation, whole or in parts, have the same.
    """
    data = to_json(evaluation)
    data["provenance"] = {"seed": evaluation.provenance.seed}
    data["data"] = {key: value for key, value in data["data"].items() if key != "shard"}
    data["images"] = {key: value for key, value in data["images"].items() if key != "file"}
    for entry in data["results"]:
        del entry["seconds"]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def from_json(data: Mapping[str, Any], where: str = "record") -> Record:
    """The record that `to_json` wrote. Raises `EquipoiseError` naming `where` and what is wrong for anything else, also
    for fields of other types and lists of other lengths.
    """
    cls = _KINDS.get(str(data.get("kind"))) if isinstance(data, Mapping) else None
    if cls is None:
        raise EquipoiseError(f"{where} is not the record of a run or of an evaluation: its kind is {_kind(data)}.")
    require(
        data.get("schema") == SCHEMA, f"{where} has schema {data.get('schema')!r}, this version reads schema {SCHEMA}."
    )
    body = {k: v for k, v in data.items() if k not in ("kind", "schema", "digest", "corrupted")}
    derived = ("n", "accuracy", "interval")
    try:
        body["provenance"] = Provenance(**body["provenance"])
        if cls is Evaluation:
            body["flags"] = [Flag(**flag) for flag in body.get("flags", ())]
            body["results"] = [
                AttackResult(**{k: v for k, v in r.items() if k not in derived}) for r in body["results"]
            ]
            corruptions = [{k: v for k, v in r.items() if k not in derived} for r in body.get("corruptions", ())]
            body["corruptions"] = tuple(CorruptionResult(**entry) for entry in corruptions)
        record = cls(**body)
    except (KeyError, TypeError, AttributeError) as error:
        raise EquipoiseError(f"{where} is not a complete {data['kind']} record: {error}.") from error
    require(
        isinstance(record.provenance.command, str)
        and _integer(record.provenance.seed)
        and isinstance(record.provenance.options, Mapping),
        f"{where} is damaged: its command is no text, its seed no integer or its options no table.",
    )
    if isinstance(record, Evaluation):
        _check(record, where)
    return record


def _kind(data: Any) -> str:
    """What JSON data say they are, in words: another record of equipoise, such as an audit's, says it too."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    return repr(kind) if isinstance(kind, str) else "not named"


def _check(evaluation: Evaluation, where: str) -> None:
    """Raise `EquipoiseError` unless every field of an evaluation that was read has its type and its length."""
    texts = (evaluation.target, evaluation.weights, *_listed(evaluation.warnings))
    require(
        isinstance(evaluation.data, Mapping) and all(isinstance(text, str) for text in texts),
        f"{where} is damaged: its data is no table, its target no text or its warnings no list of texts.",
    )
    tables = (evaluation.model, evaluation.images)
    require(
        all(isinstance(table, Mapping) for table in tables) and all(map(_integer, _listed(evaluation.index))),
        f"{where} is damaged: its model or images is no table, or its index no list of integers.",
    )
    words = (word for flag in evaluation.flags for word in (flag.name, flag.figure, flag.advice))
    require(all(isinstance(word, str) for word in words), f"{where} is damaged: a flag's text is no text.")
    require(len(evaluation.results) > 0, f"{where} is damaged: it has no results.")
    for number, result in enumerate(evaluation.results, 1):
        counts = (result.evaluations, result.nan_gradients, result.zero_gradients, result.not_finite)
        whole = (
            isinstance(result.attack, str)
            and isinstance(result.norm, str)
            and (_number(result.eps) or result.eps == math.inf)
            and result.eps >= 0
            and isinstance(result.settings, Mapping)
            and all(map(_integer, counts))
            and _number(result.seconds)
        )
        require(whole, f"{where} is damaged: result {number} lacks a name, a radius, settings or a count.")
        for name, (what, fits) in _PER_SAMPLE.items():
            values = _listed(getattr(result, name))
            require(
                all(map(fits, values)) and (name == "correct" or len(values) in (0, result.n)),
                f"{where} is damaged: {name} of result {number} ({result.attack}) is not {what} for every sample.",
            )
        require(result.n > 0, f"{where}: result {number} ({result.attack}) covers no samples; evaluate again.")
    for number, result in enumerate(evaluation.corruptions, 1):
        columns = {name: _listed(getattr(result, name)) for name in ("correct", "prediction")}
        require(
            isinstance(result.corruption, str)
            and isinstance(result.source, str)
            and all(len(v) == evaluation.results[0].n and all(map(_PER_SAMPLE[k][1], v)) for k, v in columns.items()),
            f"{where} is damaged: corruption {number} lacks a name, or an outcome for every sample.",
        )


def _listed(value: Any) -> Sequence[Any]:
    """The list itself; what is none stands for one that fits nothing."""
    return value if isinstance(value, list | tuple) else [object()]


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _number(value: Any) -> bool:
    return _integer(value) or (isinstance(value, float) and math.isfinite(value))


_PER_SAMPLE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "correct": ("true or false", lambda v: isinstance(v, bool)),
    "distance": ("a number or null", lambda v: v is None or _number(v)),
    "prediction": ("an integer", _integer),
    "winner": ("a name or null", lambda v: v is None or isinstance(v, str)),
    "iteration": ("an integer or null", lambda v: v is None or _integer(v)),
    "queries": ("an integer", _integer),
}
"""What the lists of an `AttackResult` hold."""


def save(path: str | os.PathLike[str], record: Record) -> Path:
    """Write `record` as JSON to `path`, an evaluation with its `digest`, atomically, and return the path."""
    data = to_json(record) | ({"digest": digest(record)} if isinstance(record, Evaluation) else {})
    return write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


def load(path: str | os.PathLike[str]) -> Record:
    """Read a record. Raises `EquipoiseError` if the file is missing, not JSON, or not a record."""
    try:
        data = plain_json(path)
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise EquipoiseError(f"{path} is not JSON ({error}); expected a record written by equipoise.") from error
    return from_json(data, str(path))


def check_weights(folder: Path, run: Run) -> None:
    """Raise `EquipoiseError` if a file of weights in the folder of a run is not the one whose SHA-256 it names."""
    for name in changed_weights(folder, run):
        raise weights_error(folder, name)


def changed_weights(folder: Path, run: Run) -> list[str]:
    """Names of the weight files that are there and are not those of the record."""
    return [name for name, sha in run.weights.items() if (folder / name).exists() and _sha256(folder / name) != sha]


def weights_error(folder: Path, name: str) -> EquipoiseError:
    """The error for weights that are not those of the record."""
    return EquipoiseError(
        f"{folder / name} is not the file that {folder / 'run.json'} names (its SHA-256 differs): something else wrote "
        "it, or the run was killed while it did; continue the run with --resume, or train again."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two requests, both JSON-ready, one phrase each: `pgd linf 0.1, steps: 20 before, 2
    now`.
    """
    return [
        f"{', '.join(path)}: {_brief(old)} before, {_brief(new)} now"
        for path, old, new in _changes(json.loads(json.dumps(before)), json.loads(json.dumps(now)), ())
    ]


_ABSENT = object()


def _changes(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            yield from _changes(before.get(key, _ABSENT), now.get(key, _ABSENT), (*path, key))
    elif before is _ABSENT or now is _ABSENT or before != now:
        yield path, before, now


def _brief(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, Mapping | list) and len(str(value)) > 40:
        return "present"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) < 64 else f"{text[:12]}..."  # a SHA-256


def require_same(path: str | os.PathLike[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `EquipoiseError` naming what differs unless the finished result at `path`, the outcome of the request
    `before`, is that of the request `now` too.
    """
    told = differences(before, now)
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    require(
        not told,
        f"{path} already holds another result ({'; '.join(told[:3])}{more}): add --overwrite to replace it, or choose "
        "another place with --out.",
    )


def write_atomically(path: str | os.PathLike[str], content: bytes | str, *, durable: bool = True) -> Path:
    """Write `content` to `path` so that `path` holds either its old content or all of the new, also after a crash.

    Text is written in UTF-8; the bytes of a file name in another encoding are written as escapes.
    Without `durable` that holds when a process is killed, but not when the machine loses power, and takes less time.
    Raises `EquipoiseError` if it cannot be written (no space, no permission); nothing is left behind then.
    """
    path = Path(path)
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    real = path.resolve()  # a link keeps pointing to the file, which is what changes
    require(
        not os.path.exists(real) or os.path.isfile(real) or os.path.isdir(real),
        f"cannot write {path}: it is not a plain file; choose another place with --out.",
    )
    temporary = real.with_name(f".{real.name}.{os.getpid()}.tmp")
    try:
        with folder_made(real.parent):
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                temporary.replace(real)
            finally:
                with suppress(OSError):  # after success it is gone already
                    temporary.unlink()
    except OSError as error:
        raise EquipoiseError(f"cannot write {path}: {reason(error)}; {advice(error)}.") from error
    return path


def write_once(path: str | os.PathLike[str], content: bytes, overwrite: bool = False, option: str = "--out") -> Path:
    """Write `content` to `path` unless it is there already. Raises `EquipoiseError` if other content is there and may
    not be overwritten; `option` is the one that names the place.
    """
    path = Path(path)
    try:
        there = plain_bytes(path) if os.path.lexists(path) else None
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {reason(error)}; choose another place with {option}.") from error
    if there == content:
        return path
    require(
        overwrite or there is None,
        f"{path} exists already, with other content: add --overwrite to replace it, or choose another place with "
        f"{option}.",
    )
    return write_atomically(path, content)


def require_room(folder: Path, option: str = "--out") -> None:
    """See that files can be written into `folder`, which need not exist: better refused now than after hours of work.

    Nothing is left behind. Raises `EquipoiseError` if they cannot; `option` is the one that names the place.
    """
    try:
        with folder_made(folder), TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EquipoiseError(f"cannot write into {folder}: {reason(error)}; {advice(error, option)}.") from error
