"""What the commands do: read the input, call the library, print what came out."""

import os
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from equipoise import nets
from equipoise.cli.auditing import audit
from equipoise.cli.display import TrainingProgress, evaluation_progress, say
from equipoise.cli.evaluating import evaluate, merge_records, show, verify
from equipoise.cli.manifolds import manifold_of_run, named_manifold
from equipoise.cli.method_options import Learned, build_method, full_name, parameters
from equipoise.cli.options import (
    Audit,
    Command,
    Evaluate,
    Experiments,
    Merge,
    Report,
    Reproduce,
    Score,
    Study,
    Train,
    Verify,
    net_options,
)
from equipoise.cli.processes import is_main_process
from equipoise.cli.recorded import as_data
from equipoise.cli.reproducing import list_experiments, reproduce
from equipoise.cli.resuming import lasting
from equipoise.cli.scoring import score
from equipoise.cli.studying import study
from equipoise.core.errors import require
from equipoise.core.files import write_once
from equipoise.data import Dataset, load
from equipoise.evaluation import evaluate_run
from equipoise.generators import Manifold, auto_encoder
from equipoise.losses.terms import Method
from equipoise.models import DeepKernelGP, Ensemble, MonteCarloDropout, as_predictive, kl_to_prior
from equipoise.reproduce import RECORD, keep_numbers, reproduction
from equipoise.results.provenance import recorded_options
from equipoise.training import MANIFOLD_FILE, build_model, training_split
from equipoise.training.fit import launch, prepare
from equipoise.training.folder import locked_run_folder
from equipoise.training.interruption import listening
from equipoise.training.job import Job


def run(options: Command, command: str) -> int:
    """Do what was typed, and return the exit code; `command` is the text of it, for the records.

    SIGINT and SIGTERM raise `Interrupted`, a `KeyboardInterrupt`, whatever is being done.
    """
    with listening(None), recorded_options(as_data(options)):
        return _run(options, command)


def _run(options: Command, command: str) -> int:
    match options:
        case Train():
            train(options, command)
        case Evaluate():
            evaluate(options, command)
        case Audit():
            return audit(options, command)
        case Score():
            score(options, command)
        case Verify():
            verify(options)
        case Merge():
            merge_records(options)
        case Study():
            study(options, command)
        case Experiments():
            list_experiments(options)
        case Reproduce():
            return reproduce(options, command)
        case Report():
            say(f"wrote {_report(options)}")
    return 0


def _report(options: Report) -> Path:
    """The page of runs, or of one experiment."""
    experiments = [place for place in options.runs if (place / RECORD).is_file()]
    if not experiments:
        from equipoise.report import report

        if options.overwrite or not os.path.lexists(options.out):
            return report(options.runs, options.out)
        require(not options.out.is_dir(), f"--out {options.out} is a directory: expected a file, such as report.html.")
        with TemporaryDirectory() as folder:
            written = report(options.runs, Path(folder, options.out.name)).read_bytes()
        return write_once(options.out, written)
    require(
        len(options.runs) == 1,
        f"{experiments[0]} holds an experiment, whose page stands alone: give it by itself.",
    )
    from equipoise.report.reproduction import page

    found = reproduction(experiments[0])
    say(f"{found.source}: {found.verdict}")
    say(f"wrote {keep_numbers(experiments[0], found)}")
    return write_once(options.out, page(found).encode("utf-8", "backslashreplace"), options.overwrite)


def train(options: Train, command: str) -> None:
    """Train, evaluate what came out, and say what to do next."""
    build_method(options.method)  # its hyper-parameters are seen to be in range before data are loaded
    recipe, record = options.recipe, parameters(options.method)
    require(options.members > 1 or not options.together, "--together needs --members: one network has nobody to join.")
    require(
        options.dropout_samples > 0 or options.dropout_loss == "loss-of-mean",
        "--dropout-loss needs --dropout-samples: one pass has one loss.",
    )
    require(
        record["name"] != "adp" or options.members > 1 or options.dropout_samples > 1 or options.inducing > 0,
        "adp compares the members of an ensemble: add --members 3, as its paper has.",
    )
    examples = options.evaluate_examples
    require(
        examples is None or examples >= 0,
        f"--evaluate-examples {examples}: expected a number of test samples, or 0 for no evaluation.",
    )
    record["name"] = full_name(record)
    device = recipe.pick_device()
    data = load(options.data, options.data_root)
    say(data.summary)
    if options.limit is not None:
        data = data.limit(options.limit, recipe.seed)
    net = _net_record(options, data)
    model = build_model(net)
    if isinstance(model, DeepKernelGP):
        model.start_from(training_split(data, recipe)[0].x, recipe.seed)
    learned: Learned | None = getattr(options.method, "learned", None)
    named = None if learned is None else named_manifold(learned, data)
    out = options.out or Path("runs", f"{record['name']}-{data.name}-{recipe.seed}")
    begun = any((out / name).exists() for name in ("run.json", MANIFOLD_FILE))
    require(begun or not options.resume, f"there is no run in {out} to resume: start it without --resume.")

    def prepared(manifold: Manifold | None) -> Job:
        """Everything but the training, checked."""
        kept = {key: value for key, value in record.items() if key not in ("manifold_epochs", "codes")}
        return prepare(
            _suited(build_method(options.method, manifold), model, data, options),
            model,
            data,
            recipe,
            out=out,
            resume=options.resume,
            overwrite=options.overwrite,
            method_record=record if manifold is None else kept | {"manifold": str(manifold)},
            net_record=net,
            words=lasting(shlex.split(command)[1:]),
            command=command,
            progress=TrainingProgress(),
        )

    job = prepared(None if learned is None else auto_encoder(data.shape, learned.codes))
    with listening(None), locked_run_folder(job):
        count = f"{options.members} x {net['name']}" if options.members > 1 else net["name"]
        size = f"{count}, {nets.count_parameters(as_predictive(model).module):,} parameters"
        say(f"{record['name']} on {data.name}, {len(data.train)} samples; {size}")
        if learned is not None:
            sigma = record.get("sigma", 0.06)
            job = prepared(manifold_of_run(learned, named, data, recipe, out, sigma))
        launch(job)
        if is_main_process() and examples != 0:
            evaluations = evaluate_run(
                out,
                data,
                examples=examples,
                precision=recipe.precision,
                device=device,
                command=command,
                progress=lambda weights: evaluation_progress(f"evaluating the {weights} weights"),
            )
            show(*evaluations)
    say(f"wrote {out}; next: {shlex.join(['equipoise', 'report', str(out), '--out', 'report.html'])}")


def _suited(method: Method, model: object, data: Dataset, options: Train) -> Method:
    """The method as that kind of model needs it."""
    if isinstance(model, DeepKernelGP):
        held_in, _ = training_split(data, options.recipe)
        return method.per_member(total=False).with_penalty(1.0, kl_to_prior(len(held_in)))
    if isinstance(model, MonteCarloDropout) and options.dropout_loss == "mean-of-losses":
        return method.per_member(total=False)
    return method.per_member() if isinstance(model, Ensemble) and not options.together else method


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
        "members": options.members,
        "dropout_samples": options.dropout_samples,
        "inducing": options.inducing,
    }


def _statistics(data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, or of all features together, over the training samples."""
    x = data.train.x.double()
    channels = x.transpose(0, 1).flatten(1) if x.ndim == 4 else x.reshape(1, -1)
    mean, std = channels.mean(1), channels.std(1)
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())
