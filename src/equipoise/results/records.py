"""Results as plain data: the model, the data, the attacks and the outcomes. Read and written as JSON, no torch.

Everything that a report shows, a comparison cites or a verification recomputes is in these records. Files are written
atomically: a reader sees the old file or the new one.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.deprecation import renamed_names
from equipoise.core.documentation import show_attributes
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import write_atomically
from equipoise.core.tables import Row, Tabular
from equipoise.results.accuracies import Accuracies
from equipoise.results.outcomes import (
    ACCURACY,
    CertifiedResult,
    CorruptionResult,
    MeanResult,
    Outcomes,
    accuracy_cells,
)
from equipoise.results.schema import Finite, Radius, Whole, parse, read_data, require_kind

SCHEMA = 1


@dataclass(frozen=True)
class Provenance:
    """What is needed to reproduce a result."""

    command: str
    """The command line, or the call."""
    seed: Whole
    """The seed every random draw was derived from."""
    versions: Mapping[str, str]
    """Versions of equipoise, python, torch and numpy."""
    commit: str | None
    """Commit of the source tree it ran from, with `+` if it had changes; None outside a repository."""
    device: str
    """Name of the device."""
    threads: int
    """Number of threads that PyTorch used."""
    date: str
    """Date and time in UTC, ISO 8601."""
    kernels: str = ""
    """The C kernels that compute small networks on a CPU; empty if PyTorch does, and in records of earlier versions."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The name of the command (`command`) and all options, as data. Empty for a call from Python, and in records of
    earlier versions."""


_PER_SAMPLE = ("distance", "prediction", "winner", "iteration", "queries", "rates", "choice")
"""What an `AttackRecord` may hold of every sample, beside `correct`."""


@dataclass(frozen=True, repr=False)
class AttackRecord(Outcomes):
    """Outcome of one attack at one radius. `attack = "clean"` with `eps = 0` is accuracy without an attack."""

    attack: str
    """Name, e.g. `clean`, `fgsm`, `pgd`, or `worst case` over the attacks at one radius."""
    norm: str
    """`linf`, `l2` or `l1`."""
    eps: Radius
    """Radius of the ball, in pixel units of [0, 1]."""
    correct: Sequence[bool]
    """Per sample, in the order of the data: still classified correctly (by a randomised model, in at least
    half of the draws)."""
    distance: Sequence[Finite | None] = ()
    """Per sample: distance of the reported adversarial example, None where the attack failed."""
    prediction: Sequence[Whole] = ()
    """Per sample: the class predicted at the reported point, in float32 and eval mode."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every parameter of the attack."""
    winner: Sequence[str | None] = ()
    """Per sample: the name of the attack, or of the member of a composite one, that fooled the model; None if none did,
    `clean` if the sample was misclassified without an attack."""
    iteration: Sequence[Whole | None] = ()
    """Per sample: number of steps after which the successful attack reached the reported point."""
    queries: Sequence[Whole] = ()
    """Per sample: number of gradient and forward evaluations."""
    evaluations: Whole = 0
    """Total number of evaluations."""
    nan_gradients: Whole = 0
    """Steps, summed over the samples, whose gradient held a NaN or an infinity."""
    zero_gradients: Whole = 0
    """Steps, summed over the samples, whose gradient was exactly zero."""
    seconds: Finite = 0.0
    """Wall-clock time."""
    rates: Sequence[Finite] = ()
    """Per sample, of a randomised model: the share of fresh draws that classify the reported point correctly."""
    choice: Sequence[Finite] = ()
    """The same share over as many independent draws, by which the worst of several attacks is chosen."""
    not_finite: Whole = 0
    """Number of samples whose prediction at the reported point is not finite (NaN): neither correct nor fooled."""

    def _table(self) -> tuple[Row, list[Row]]:
        row = (self.attack, self.norm, f"{self.eps:.4g}", *accuracy_cells(self))
        return ("attack", "norm", "eps", *ACCURACY), [row]

    def _columns(self) -> dict[str, Sequence[Any]]:
        columns = {name: getattr(self, name) for name in ("correct", *_PER_SAMPLE)}
        return {name: values for name, values in columns.items() if len(values) > 0}

    def __post_init__(self) -> None:
        require(self.n > 0, f"{self.attack or 'it'} covers no samples; evaluate again")
        for name in _PER_SAMPLE:
            length = len(getattr(self, name))
            require(length in (0, self.n), f"{name} of {self.attack} is not of every sample: {length} for {self.n}")


@dataclass(frozen=True)
class ResultWarning:
    """A reason to doubt a result, with the measurement behind it."""

    name: str
    """The suspected problem, e.g. `randomised model`."""
    figure: str
    """The measurement, e.g. `logits change by up to 0.4 between two calls, on 64 of 64 samples`."""
    advice: str
    """The recommended action."""

    def __str__(self) -> str:
        return f"{self.name}: {self.figure}; {self.advice}"


@dataclass(frozen=True, repr=False)
class Evaluation(Accuracies):
    """Accuracy of one model, clean and under attacks, on one set of samples."""

    target: str
    """The run directory or `package.module:factory` that was evaluated."""
    data: Mapping[str, Any]
    """Name, SHA-256 of the content, split and number of samples."""
    results: Sequence[AttackRecord]
    """One entry per attack and radius, and the worst case per radius."""
    provenance: Provenance
    """What is needed to reproduce it."""
    weights: str = "best"
    """Which weights of a run: `best` or `last`."""
    warnings: Sequence[str] = ()
    """What to know before citing a number."""
    flags: Sequence[ResultWarning] = ()
    """Reasons to doubt the results."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """SHA-256 of the weights and buffers (`sha256`) and number of parameters."""
    index: Sequence[Whole] = ()
    """Position of each sample in the order of the evaluation; the rest belong to other shards."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """File of the stored adversarial images, beside the record, and its SHA-256; empty if none were stored."""
    corruptions: Sequence[CorruptionResult] = ()
    """Accuracy on corrupted images of the same samples; empty if none were asked for."""
    certified: Sequence[CertifiedResult] = ()
    """Certified accuracy in the balls of the attacks; empty if none was asked for."""

    def __post_init__(self) -> None:
        require(len(self.results) > 0, "it has no results")
        for proof in self.certified:
            lengths = {len(proof.correct), len(proof.margin)}
            require(lengths == {self.results[0].n}, f"{proof.attack} lacks an outcome for every sample")
        for result in self.corruptions:
            for outcomes in (result.correct, result.prediction):
                require(len(outcomes) == self.results[0].n, f"{result.corruption} lacks an outcome for every sample")

    def _entries(self) -> list[AttackRecord | CertifiedResult | CorruptionResult]:
        return [*self.by_ball, *self.corruptions]

    @property
    def by_ball(self) -> list[AttackRecord | CertifiedResult]:
        """The results, each ball's followed by what is certified in it."""
        last = {(result.norm, result.eps): i for i, result in enumerate(self.results) if result.attack != "clean"}
        proven = {last[proof.norm, proof.eps]: proof for proof in self.certified if (proof.norm, proof.eps) in last}
        return [r for i, result in enumerate(self.results) for r in (result, proven.get(i)) if r is not None]

    @property
    def corrupted(self) -> MeanResult | None:
        """The mean over the corruptions; None if there are none."""
        return MeanResult(self.corruptions) if self.corruptions else None


@dataclass(frozen=True, repr=False)
class Run(Tabular):
    """A training run: its settings and its outcome (`run.json` of a run directory).

    Beside it lie `metrics.jsonl` (one line per epoch), `best.safetensors`, `last.safetensors`, `evaluation*.json`
    and `samples.npz` (arrays `clean`, `udp`, `pgd`, `judged` of shape (n, channels, height, width) in [0, 1], `labels`,
    for each of the four its `_prediction`, and for the perturbed ones their `_norm` and `_eps`).
    """

    method: Mapping[str, Any]
    """Name, the sum of terms as text, and every hyper-parameter."""
    recipe: Mapping[str, Any]
    """Optimiser, schedule, epochs and all other settings of the training loop."""
    net: Mapping[str, Any]
    """Name and arguments of the network, number of parameters."""
    data: Mapping[str, Any]
    """Name, SHA-256, class names, shape, number of training, validation and test samples."""
    provenance: Provenance
    """What is needed to reproduce it."""
    status: str = "running"
    """`running`, `finished`, `stopped early` or `failed: reason`."""
    best: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the epoch with the best validation robust accuracy."""
    last: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last epoch."""
    alarms: Sequence[str] = ()
    """Problems that were noticed in training, e.g. catastrophic overfitting."""
    seconds: Finite = 0.0
    """Wall-clock time of the training."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file of weights."""
    words: Sequence[str] = field(default_factory=list)
    """Words of the command line with which `--resume` continues, from the method on; empty for a run from Python."""

    def __post_init__(self) -> None:
        require(isinstance(self.data.get("classes") or [], list | tuple), "its classes are not a list")

    def _table(self) -> tuple[Row, list[Row]]:
        of = (str(about.get("name", "")) for about in (self.method, self.net, self.data))
        shares = (f"{self.best[name]:.1%}" if name in self.best else "" for name in ("valid_clean", "valid_pgd"))
        header = "method", "net", "data", "status", "best epoch", "valid clean", "valid pgd"
        return header, [(*of, self.status, f"{self.best.get('epoch', 0):g}", *shares)]

    def _columns(self) -> dict[str, list[Any]]:
        names = dict.fromkeys([*self.best, *self.last])
        return {"weights": ["best", "last"]} | {name: [self.best.get(name), self.last.get(name)] for name in names}


@dataclass(frozen=True)
class ScoreCurve:
    """The mean of `H(R(x, eps))` over the samples against the radius."""

    eps: Sequence[Finite]
    """The radii."""
    value: Sequence[Finite]
    """The mean at each."""
    interval: Sequence[Sequence[Finite]]
    """Lower and upper ends of its 95 % intervals."""

    def __post_init__(self) -> None:
        columns = (self.eps, self.value, *self.interval)
        same = len(columns) == 4 and {len(column) for column in columns} == {len(self.eps)}
        require(same and len(self.eps) > 0, "it has not one value with both ends of its interval for each radius")


@dataclass(frozen=True)
class ScoreResult:
    """One score of a model."""

    value: Finite
    """The score, a mean over the samples."""
    n: Whole
    """Number of samples."""
    curve: ScoreCurve = field(repr=False)
    """The integrand."""
    settings: Mapping[str, Any]
    """Every parameter of the score, with its `H`, `G` and `radii`."""
    standard_error: Finite | None = None
    """Standard error of the value; None for one sample."""
    interval: tuple[Finite, Finite] | None = None
    """95 % interval of the value; None for one sample."""
    won: Mapping[str, Finite] = field(default_factory=dict)
    """Share of the nearest points that each attack found."""
    samples: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Per sample its value and, if there is one, the margin (null if no point was found), the attack that found the
    point, and the class there."""

    def __post_init__(self) -> None:
        lacking = sorted({"H", "G", "radii"} - self.settings.keys())
        require(not lacking, f"its settings lack {', '.join(lacking)}")


@dataclass(frozen=True, repr=False)
class Scores(Tabular):
    """Robustness scores of one model on one set of samples (F, Eq. 3)."""

    target: str
    """The run directory or `package.module:factory` that was scored."""
    data: Mapping[str, Any]
    """Name, SHA-256 of the content, split and number of samples."""
    scores: Mapping[str, ScoreResult]
    """The scores by name, such as `r2`."""
    provenance: Provenance
    """What is needed to reproduce it."""
    weights: str = "given"
    """Which weights of a run: `best` or `last`; `given` for a user's own model."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """SHA-256 of the weights and buffers (`sha256`) and number of parameters."""
    seconds: Finite = 0.0
    """Wall-clock time."""

    def __post_init__(self) -> None:
        require(len(self.scores) > 0, "it holds no score")

    def _table(self) -> tuple[Row, list[Row]]:
        rows = []
        for name, score in self.scores.items():
            span = " to ".join(f"{end:.4g}" for end in score.interval or ())
            rows.append((name, f"{score.value:.4g}", span, str(score.n)))
        return ("score", "value", "95 % interval", "samples"), rows

    def _columns(self) -> dict[str, list[Any]]:
        ends = zip(*(s.interval or (None, None) for s in self.scores.values()), strict=True)
        values = {name: [getattr(s, name) for s in self.scores.values()] for name in ("n", "value", "standard_error")}
        return {"score": list(self.scores), **values, **dict(zip(("low", "high"), map(list, ends), strict=True))}


Record = Evaluation | Run | Scores
_KINDS: dict[str, type[Record]] = {"evaluation": Evaluation, "run": Run, "score": Scores}
_EXPECTED = "the record of a run, of an evaluation or of scores"


def to_json(record: Record) -> dict[str, Any]:
    """Return the record as JSON-ready data, with its kind, schema number, and the summary of each evaluation result.

    Empty `corruptions`, `certified` and options of the provenance are left out, so that records without them have not
    changed.
    """
    kind = next(name for name, cls in _KINDS.items() if isinstance(record, cls))
    data = {"kind": kind, "schema": SCHEMA, **asdict(record)}
    if not record.provenance.options:
        del data["provenance"]["options"]
    if isinstance(record, Evaluation):
        for name in ("results", "corruptions", "certified"):
            for entry, result in zip(data[name], getattr(record, name), strict=True):
                for seldom in ("rates", "choice", "not_finite"):
                    if not entry.get(seldom, True):
                        del entry[seldom]
                entry.update(figures(result))
        if not record.certified:
            del data["certified"]
        if record.corrupted is None:
            del data["corruptions"]
        else:
            data["corrupted"] = figures(record.corrupted)
    return data


def figures(result: Outcomes | MeanResult) -> dict[str, Any]:
    """Return the summary of the outcomes: `n`, `accuracy` and `interval`."""
    return {"n": result.n, "accuracy": result.accuracy, "interval": list(result.interval)}


def digest(evaluation: Evaluation) -> str:
    """Return the SHA-256 of the results and the seed: everything but the date, the device, the command and the times.
    Two runs of one evaluation, whole or in shards, have the same digest.
    """
    data = to_json(evaluation)
    data["provenance"] = {"seed": evaluation.provenance.seed}
    data["data"] = {key: value for key, value in data["data"].items() if key != "shard"}
    data["images"] = {key: value for key, value in data["images"].items() if key != "file"}
    for entry in data["results"]:
        del entry["seconds"]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def from_json(data: Mapping[str, Any], where: str = "record") -> Record:
    """Return the record that `to_json` wrote. Raises `EquipoiseError` naming `where` and the fault for anything else,
    also for fields of other types and lists of other lengths.
    """
    require_kind(data, _KINDS, SCHEMA, where, _EXPECTED)
    body = {k: v for k, v in data.items() if k not in ("kind", "schema", "digest", "corrupted")}
    for name in ("results", "corruptions", "certified"):
        if isinstance(body.get(name), list):
            body[name] = [_without_figures(entry) for entry in body[name]]
    return parse(_KINDS[data["kind"]], body, where)


def _without_figures(entry: Any) -> Any:
    """The data of a result without its summary."""
    derived = ("n", "accuracy", "interval")
    return {k: v for k, v in entry.items() if k not in derived} if isinstance(entry, Mapping) else entry


def save(path: str | os.PathLike[str], record: Record) -> Path:
    """Write `record` as JSON to `path`, an evaluation with its `digest`, atomically, and return the path."""
    data = to_json(record) | ({"digest": digest(record)} if isinstance(record, Evaluation) else {})
    return write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


def load(path: str | os.PathLike[str]) -> Record:
    """Read a record. Raises `EquipoiseError` if the file is missing, not JSON, or not a record."""
    return from_json(read_data(path, _EXPECTED), str(path))


def check_weights(folder: Path, run: Run) -> None:
    """Raise `EquipoiseError` if a file of weights in the folder of a run is not the one whose SHA-256 it names."""
    for name in changed_weights(folder, run):
        raise weights_error(folder, name)


def changed_weights(folder: Path, run: Run) -> list[str]:
    """Return the names of existing weight files that differ from those of the record."""
    return [name for name, sha in run.weights.items() if (folder / name).exists() and _sha256(folder / name) != sha]


def weights_error(folder: Path, name: str) -> EquipoiseError:
    """Return the error for a weight file that differs from that of the record."""
    return EquipoiseError(
        f"{folder / name} is not the file that {folder / 'run.json'} names (its SHA-256 differs): something else wrote "
        "it, or the run was killed while it did; continue the run with --resume, or train again."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


__getattr__ = renamed_names(__name__, {"AttackResult": "AttackRecord", "Flag": "ResultWarning"})

show_attributes(__name__)
