"""How tasks are run: where, on which data, under which key, and what is read of them afterwards."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import equipoise
from equipoise.attacks import transfer
from equipoise.core.rng import Streams
from equipoise.data import Dataset
from equipoise.data import load as load_dataset
from equipoise.evaluation import evaluate_dataset, suite
from equipoise.evaluation.summaries import by_ball
from equipoise.evaluation.verification import fingerprint, read
from equipoise.generators import auto_encoder
from equipoise.masking.result_checks import is_black_box
from equipoise.models import Ensemble, as_predictive
from equipoise.nets import count_parameters
from equipoise.report.reading import read_metrics
from equipoise.reproduce.studies import STUDIES, Options, ReportProgress, load, save
from equipoise.reproduce.tasks import (
    DataManifold,
    Evaluated,
    MeasureTask,
    StudyTask,
    Task,
    Training,
    datasets,
    described,
    plain,
)
from equipoise.results.findings import Findings, Images, Number, Picture, Study
from equipoise.results.provenance import provenance
from equipoise.results.records import Evaluation, Run
from equipoise.training import MANIFOLD_FILE, Progress, build_model, fit, fit_manifold, load_manifold, load_run


@dataclass(frozen=True)
class Setting:
    """Where tasks are run, and on which data; plain values, which can be sent to other processes."""

    folder: Path
    """Every task has a folder of its own in it, named by its key."""
    data_root: Path | None = None
    """Where the files of datasets are looked for."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """What stands in for a published dataset: its name, and a file or folder that `equipoise.data.load` takes."""
    command: str = ""
    """What is to be written into records as the command."""
    code: str = ""
    """Version of the code; empty for that of this process."""

    def sha256(self, name: str) -> str:
        """Return the digest of the dataset of that name, which is remembered when the dataset is not."""
        return _digest(self.sources.get(name, name), self.data_root)

    def dataset(self, name: str) -> Dataset:
        """Return the dataset of that name, loaded once per process."""
        return _loaded(self.sources.get(name, name), self.data_root)

    def folder_of(self, task: Task) -> Path:
        """Return the folder of a task."""
        return self.folder / key(task, self)


@cache
def _loaded(source: str, root: Path | None) -> Dataset:
    return load_dataset(source, root)


@cache
def _digest(source: str, root: Path | None) -> str:
    return _loaded(source, root).sha256


def forget_datasets() -> None:
    """Free the memory of the datasets that this process has loaded; their digests stay."""
    _loaded.cache_clear()


def run(task: Task, setting: Setting, report_progress: ReportProgress) -> None:
    """Compute a task in its folder, or continue where it was stopped."""
    folder, began = setting.folder_of(task), perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    match task:
        case Training():
            return _train(task, setting, folder, report_progress)
        case Evaluated():
            return _evaluate(task, setting, folder, report_progress)
        case DataManifold():
            study = _learn_manifold(task, setting, folder, report_progress)
        case StudyTask():
            study = _study(task, setting, report_progress)
        case MeasureTask():
            study = _measure(task, setting, report_progress)
    origin = asdict(provenance(0, torch.device("cpu"), setting.command))
    save(folder, replace(study, provenance=origin, seconds=perf_counter() - began))


def _train(task: Training, setting: Setting, folder: Path, report_progress: ReportProgress) -> None:
    data = _limited(setting.dataset(task.data), task.samples, task.recipe.seed)
    net = {**asdict(task.net), "shape": list(data.shape), "classes": len(data.classes), "seed": task.recipe.seed}
    together = net.pop("together")
    model = build_model(net)
    method = task.method(*([load_manifold(setting.folder_of(task.manifold))] if task.manifold else []))
    if isinstance(model, Ensemble) and not together:
        method = method.per_member()

    def progress(now: Progress) -> None:
        done = now.epoch - (now.metrics is None) + now.step / max(now.steps, 1)  # metrics come after an epoch
        report_progress(f"epoch {now.epoch} of {now.epochs}", min(done / now.epochs, 1.0))

    fit(
        method,
        model,
        data,
        task.recipe,
        out=folder,
        resume=(folder / "run.json").exists(),
        method_record={"name": task.method.name, **plain(task.method.options)},
        net_record=net | {"parameters": count_parameters(as_predictive(model).module)},
        command=setting.command,
        progress=progress,
    )


def _evaluate(task: Evaluated, setting: Setting, folder: Path, report_progress: ReportProgress) -> None:
    model, run = load_run(setting.folder_of(task.of), task.weights, task.of.recipe.pick_device())
    attacks = suite(
        task.attacks, task.eps, task.norm, steps=task.steps, step_size=task.step_size, restarts=task.restarts
    )
    if task.proxies:
        attacks = by_ball([one for proxy in task.proxies for one in _made_on(proxy, task.weights, attacks, setting)])
    evaluate_dataset(
        model,
        setting.dataset(task.data),
        attacks,
        target=str(setting.folder_of(task.of)),
        examples=task.examples,
        weights=task.weights,
        seed=run.provenance.seed,
        command=setting.command,
        out=folder / "evaluation.json",
        resume=(folder / "evaluation.json.partial").is_dir(),
        progress=lambda what, done, total: report_progress(what, done / max(total, 1)),
    )


def _made_on(proxy: Training, weights: str, attacks: Any, setting: Setting) -> Any:
    """The gradient attacks, made on the proxy with the weights of the same epoch."""
    model, _ = load_run(setting.folder_of(proxy), weights, proxy.recipe.pick_device())
    sha = fingerprint(model)["sha256"]
    return [
        (f"{name} from {proxy.method}", transfer(model, attack, str(proxy.method), sha))
        for name, attack in attacks
        if not is_black_box(name)
    ]


def _learn_manifold(task: DataManifold, setting: Setting, folder: Path, report_progress: ReportProgress) -> Study:
    """Train the auto-encoder; the study shows what it does to a few test samples."""
    data = _limited(setting.dataset(task.data), task.samples, task.recipe.seed)
    manifold = auto_encoder(data.shape, task.codes, task.width, task.recipe.seed)
    losses = fit_manifold(manifold, data, task.recipe, out=folder / MANIFOLD_FILE, progress=report_progress)[-1]
    error = losses.reconstruction / data.train.x[0].numel()
    numbers = [Number("squared error of a pixel", [error]), Number("MMD of the codes, squared", [losses.mmd])]
    pictures = []
    if len(data.shape) == 3:
        x = data.test.x[:8]
        samples = load_manifold(folder).gallery(x, 6, 0.06, Streams.of(0, torch.arange(len(x))))
        names = ["sample", "reconstruction", *["near it"] * 6]
        panel = Images("samples of the manifold", samples.double().numpy(), [""] * len(x), names)
        caption = "Test samples and points near them on the manifold, sigma = .06."
        pictures.append(Picture("manifold", caption, [panel], columns=1))
    return Study("manifold", f"Neighbours of an image of {data.name}", "", Findings(numbers, pictures), {})


def _study(task: StudyTask, setting: Setting, report_progress: ReportProgress) -> Study:
    entry = STUDIES[task.name]
    options = Options(
        quick=task.quick,
        data=setting.sources.get(task.data, task.data) or None,
        data_root=setting.data_root,
    )
    return Study(entry.name, entry.question, entry.source, entry.run(options, report_progress), {}, task.quick)


def _measure(task: MeasureTask, setting: Setting, report_progress: ReportProgress) -> Study:
    def samples(name: str) -> Dataset:
        data = setting.dataset(name)
        data = replace(data, test=data.test.limit(max(task.examples, len(data.classes))))  # a dataset has every class
        return data if task.samples is None else data.limit(task.samples)

    models = [load_run(setting.folder_of(one), task.weights)[0] for one in task.of]
    more: dict[str, Any] = {}
    if task.target:
        more["target"] = samples(task.target)
    if task.courses:
        more["courses"] = [read_metrics(setting.folder_of(one) / "metrics.jsonl") for one in task.of]
    if task.manifold is not None:
        more["manifold"] = load_manifold(setting.folder_of(task.manifold))
    findings = task.function(models, samples(task.data), report_progress, **more)
    return Study(task.function.name, task.question, "", findings, {})


def _limited(data: Dataset, samples: int | None, seed: int) -> Dataset:
    """The dataset with at most this number of training samples."""
    return data if samples is None or samples >= len(data.train) else data.limit(samples, seed)


def result_in(task: Task, folder: Path) -> Run | Evaluation | Study:
    """Return the record of a finished task in the folder where it was computed, by any version of the library. Raises
    `EquipoiseError` if it is missing or damaged.
    """
    if isinstance(task, Training):
        return load_run(folder)[1]
    return read(folder / "evaluation.json") if isinstance(task, Evaluated) else load(folder)


def key(task: Task, setting: Setting) -> str:
    """Return a digest of the task, its data and the code: the name of its folder."""
    content = {
        "task": described(task),
        "data": [setting.sha256(name) for name in datasets(task)],
        "code": setting.code or code_version(),
    }
    return f"{task.kind}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"


@cache
def code_version() -> str:
    """Return a digest of the library's source without what only reads, presents or lists results: changing a page or a
    paper's number makes nothing stale. What tasks do and experiments measure is part of it.
    """
    root, digest = Path(equipoise.__file__).parent, hashlib.sha256()
    for path in sorted(path for suffix in ("py", "c", "h") for path in root.rglob(f"*.{suffix}")):
        room, *inner = path.relative_to(root).parts
        presents = room in ("cli", "pretrained", "report")
        if room == "reproduce":
            presents = not inner[0].startswith(("measures", "running", "studies", "tasks"))
        if not presents:
            digest.update(os.fsencode(path.relative_to(root).as_posix()) + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
