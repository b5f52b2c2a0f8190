"""What the commands do: read the input, call the library, print what came out."""

import shlex
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from equipoise import nets
from equipoise.cli.display import TrainingProgress, accuracies, evaluation_progress, say
from equipoise.cli.options import Command, Evaluate, Report, Train, build_method, net_options, parameters, parse
from equipoise.cli.processes import is_main_process
from equipoise.data import Dataset, load
from equipoise.errors import EquipoiseError, require
from equipoise.evaluation import assess, evaluate_run, radii, suite
from equipoise.records import Evaluation, Run, save
from equipoise.records import load as load_record
from equipoise.training import Recipe, fit, load_run, load_weights

_FILES = ("run.json", "metrics.jsonl", "*.safetensors", "evaluation*.json", "samples.npz")


def run(options: Command, command: str) -> None:
    """Do what was typed; `command` is the text of it, for the records."""
    match options:
        case Train():
            train(options, command)
        case Evaluate():
            evaluate(options, command)
        case Report():
            from equipoise.report import report

            say(f"wrote {report(options.runs, options.out)}")


def train(options: Train, command: str) -> None:
    """Train, evaluate what came out, and say what to do next."""
    method, recipe, record = build_method(options.method), options.recipe, parameters(options.method)
    examples = options.evaluate_examples
    require(
        examples is None or examples >= 0,
        f"--evaluate-examples {examples}: expected a number of test samples, or 0 for no evaluation.",
    )
    device = recipe.pick_device()
    data = load(options.data, options.data_root)
    if options.limit is not None:
        data = data.limit(options.limit, recipe.seed)
    net = _net_record(options, data)
    others = {k: v for k, v in net.items() if k != "options"}
    model = nets.build(**others, **net["options"])
    out = options.out or Path("runs", f"{record['name']}-{data.name}-{recipe.seed}")
    if is_main_process():
        _claim(out, options)
    size = f"{net['name']}, {nets.count_parameters(model):,} parameters"
    say(f"{record['name']} on {data.name}, {len(data.train)} samples; {size}")
    fit(
        method,
        model,
        data,
        recipe,
        out=out,
        resume=options.resume,
        method_record=record,
        net_record=net,
        command=command,
        progress=TrainingProgress(),
    )
    if not is_main_process():
        return
    if examples != 0:
        evaluations = evaluate_run(
            out,
            data,
            examples=examples,
            precision=recipe.precision,
            device=device,
            command=command,
            progress=lambda weights: evaluation_progress(f"evaluating the {weights} weights"),
        )
        _show(*evaluations)
    say(f"wrote {out}; next: {shlex.join(['equipoise', 'report', str(out), '--out', 'report.html'])}")


def evaluate(options: Evaluate, command: str) -> None:
    """Evaluate a run or a model of the user's own, and write the record."""
    device = Recipe(device=options.device).pick_device()
    target = Path(options.target)
    trained = (target / "run.json").is_file()
    if not trained:
        _require_factory(options)
    model, recorded = load_run(target, options.weights, device) if trained else (None, None)
    data = _data_of(options, recorded)
    if model is None:
        model = _own_model(options, data).to(device)
    elif recorded is not None:
        _require_fit(recorded, data)
    norm = options.norm or (recorded.recipe.get("valid_norm", "linf") if recorded else "linf")
    attacks = suite(
        options.attacks,
        options.eps or (radii(recorded) if recorded and norm == recorded.recipe.get("valid_norm") else ()),
        norm,
        steps=options.steps,
        step_size=options.step_size,
        restarts=options.restarts,
        precision=options.precision,
    )
    evaluation = assess(
        model,
        data,
        attacks,
        target=options.target,
        examples=options.examples,
        weights=options.weights if trained else "given",
        seed=options.seed,
        batch_size=options.batch_size,
        command=command,
        progress=evaluation_progress(f"evaluating {options.target}"),
    )
    suffix = "-last" if options.weights == "last" else ""
    inside = target / f"evaluation-{'-'.join(dict.fromkeys(options.attacks))}-{norm}{suffix}.json"
    out = save(options.out or (inside if trained else Path("eval.json")), evaluation)
    _show(evaluation)
    say(f"wrote {out}")


def _show(*evaluations: Evaluation) -> None:
    data = evaluations[0].data
    say(f"accuracy on {data['n']} test samples of {data['name']}, with 95 % intervals")
    say(accuracies(evaluations))
    for warning in dict.fromkeys(w for e in evaluations for w in e.warnings):
        say(f"note: {warning}")


def _net_record(options: Train, data: Dataset) -> dict[str, Any]:
    """The network in words: all that is needed to build it again."""
    own = {"width": options.width, "widths": options.widths or None}
    return {
        "name": options.net,
        "shape": list(data.shape),
        "classes": len(data.classes),
        "seed": options.recipe.seed,
        "normalize": _statistics(data) if options.normalize else None,
        "options": {k: v for k, v in own.items() if v is not None} | net_options(options.net_option),
    }


def _statistics(data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, or of all features together, over the training samples."""
    x = data.train.x.double()
    channels = x.transpose(0, 1).flatten(1) if x.ndim == 4 else x.reshape(1, -1)
    mean, std = channels.mean(1), channels.std(1)
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())


def _claim(out: Path, options: Train) -> None:
    """See to it that `out` is free, or meant. Raises `EquipoiseError` if it holds a run that nobody mentioned."""
    require(not (options.resume and options.overwrite), "--resume and --overwrite exclude each other: choose one.")
    require(not out.exists() or out.is_dir(), f"--out {out} is a file: expected a directory, which may not exist yet.")
    if not (out / "run.json").exists():
        require(not options.resume, f"there is no run in {out} to resume: start it without --resume.")
        return
    if not (options.resume or options.overwrite):
        found = load_record(out / "run.json")
        status = f" ({found.status})" if isinstance(found, Run) else ""
        raise EquipoiseError(
            f"{out} already holds a run{status}: add --resume to continue it, --overwrite to replace it, "
            "or choose another place with --out."
        )
    if options.overwrite:
        for file in (file for pattern in _FILES for file in out.glob(pattern)):
            file.unlink()
        shutil.rmtree(out / "tensorboard", ignore_errors=True)


def _require_factory(options: Evaluate) -> None:
    target = options.target
    require(not Path(target).is_dir(), f"{target} is not a run directory: it has no run.json.")
    require(
        ":" in target or target in nets.names(),
        f"there is no run directory {target}; expected one that `equipoise train` wrote, or a model as "
        "package.module:factory.",
    )
    require(options.data is not None, f"to evaluate {target} give a dataset with --data, such as mnist or my.npz.")


def _own_model(options: Evaluate, data: Dataset) -> nn.Module:
    model = nets.build(
        options.target, data.shape, len(data.classes), seed=options.seed, **net_options(options.net_option)
    )
    if options.checkpoint is not None:
        load_weights(model, options.checkpoint)
    return model.eval()


def _data_of(options: Evaluate, recorded: Run | None) -> Dataset:
    """The dataset asked for, or else that of the run, found as its training found it and checked to be the same."""
    if options.data is not None or recorded is None:
        return load(str(options.data), options.data_root)
    name, root = recorded.data["name"], options.data_root
    words = shlex.split(recorded.provenance.command)
    if words[:2] == ["equipoise", "train"]:
        typed = parse(words[1:])
        if isinstance(typed, Train):
            name, root = typed.data, root or typed.data_root
    data = load(name, root)
    require(
        data.sha256 == recorded.data["sha256"],
        f"{name} is not the data that {options.target} was trained on (SHA-256 {data.sha256}, then "
        f"{recorded.data['sha256']}): give other data with --data if that is meant.",
    )
    return data


def _require_fit(recorded: Run, data: Dataset) -> None:
    shape, classes = recorded.data["shape"], recorded.data["classes"]
    require(
        list(data.shape) == list(shape) and len(data.classes) == len(classes),
        f"{data.name} has {len(data.classes)} classes of inputs {data.shape}, "
        f"the network was trained for {len(classes)} of {tuple(shape)}.",
    )
