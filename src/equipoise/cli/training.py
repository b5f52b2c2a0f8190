"""The train command: train, evaluate what came out, and say what to do next."""

import shlex
from pathlib import Path
from typing import Any

from equipoise import nets
from equipoise.cli.console import say, suggest
from equipoise.cli.display import TrainingProgress, evaluation_progress
from equipoise.cli.evaluating import show
from equipoise.cli.following import to_report
from equipoise.cli.loaded_model import start_from
from equipoise.cli.manifolds import manifold_of_run, named_manifold
from equipoise.cli.method_options import full_name, parameters
from equipoise.cli.options import pairs
from equipoise.cli.requests import Train
from equipoise.cli.resuming import lasting
from equipoise.core.errors import require
from equipoise.core.schedules import schedulable
from equipoise.core.torchrun import is_main_process
from equipoise.data import Dataset, load_as
from equipoise.evaluation import evaluate_run
from equipoise.generators import Manifold, auto_encoder
from equipoise.geometry import Box
from equipoise.losses.terms import Method
from equipoise.models import DeepKernelGP, Ensemble, MonteCarloDropout, as_predictive, kl_to_prior
from equipoise.training import MANIFOLD_FILE, build_model, training_split
from equipoise.training.fit import launch, prepare
from equipoise.training.folder import locked_run_folder
from equipoise.training.interruption import listening
from equipoise.training.job import Job


def train(options: Train, command: str) -> None:
    """Train, evaluate what came out, and say what to do next."""
    variation = options.variation
    variation.check()
    variation.of(options.method)  # its hyper-parameters are seen to be in range before data are loaded
    recipe, record = options.recipe, parameters(options.method)
    _require_consistent(options, record["name"])
    record["name"] = full_name(record)
    changes = {"variation": variation.record()} if variation.record() else {}
    recipe.pick_device()  # refuses a GPU that is not there before data are loaded
    data = options.loaded or load_as(options.reading, options.data, options.data_root)
    say(data.summary)
    if options.examples is not None:
        data = data.limit(options.examples, recipe.seed)
    data, unlabelled = variation.split(data, recipe.seed)
    net = net_record(options, data)
    model = build_model(net)
    if options.init is not None:
        net["init"] = start_from(options.init, model, net)
    if isinstance(model, DeepKernelGP):
        model.start_from(training_split(data, recipe)[0].x, recipe.seed)
    named = named_manifold(record, data) if "codes" in record else None
    out = options.out or Path("runs", f"{record['name']}-{data.name}-{recipe.seed}")
    begun = any((out / name).exists() for name in ("run.json", MANIFOLD_FILE))
    require(begun or not options.resume, f"there is no run in {out} to resume: start it without --resume.")

    def prepared(manifold: Manifold | None) -> Job:
        """Everything but the training, checked."""
        own = {key: value for key, value in record.items() if key not in ("manifold_epochs", "codes")}
        return prepare(
            _suited(variation.of(options.method, manifold, Box(*data.box)), model, data, options),
            model,
            data,
            recipe,
            out=out,
            resume=options.resume,
            overwrite=options.overwrite,
            method_record=(record if manifold is None else own | {"manifold": str(manifold)}) | changes,
            net_record=net,
            words=lasting(shlex.split(command)[1:]),
            command=command,
            progress=TrainingProgress(),
            unlabelled=unlabelled,
        )

    job = prepared(auto_encoder(data.shape, record["codes"]) if "codes" in record else None)
    with listening(None), locked_run_folder(job):
        count = f"{options.members} x {net['name']}" if options.members > 1 else net["name"]
        size = f"{count}, {nets.count_parameters(as_predictive(model).module):,} parameters"
        say(f"{record['name']} on {data.name}, {len(data.train)} samples; {size}")
        if "codes" in record:
            job = prepared(manifold_of_run(record, named, data, recipe, out))
        launch(job)
        if is_main_process() and options.evaluate_examples != 0:
            _evaluate(out, data, options, command)
    say(f"wrote {out}")
    if options.evaluate_examples != 0:
        to_report(str(out))
    else:
        suggest("evaluate", out, "--attacks", "autoattack")


def _evaluate(out: Path, data: Dataset, options: Train, command: str) -> None:
    """Evaluate what came out, and show it."""
    evaluations = evaluate_run(
        out,
        data,
        examples=options.evaluate_examples,
        precision=options.recipe.precision,
        device=options.recipe.pick_device(),
        command=command,
        progress=lambda weights: evaluation_progress(f"evaluating the {weights} weights"),
    )
    show(*evaluations)


def _require_consistent(options: Train, method: str) -> None:
    """Raise `EquipoiseError` for options that say nothing without others."""
    require(options.members > 1 or not options.joint_loss, "--joint-loss needs --members: one network is no ensemble.")
    require(
        options.dropout_samples > 0 or options.dropout_loss == "loss-of-mean",
        "--dropout-loss needs --dropout-samples: one pass has one loss.",
    )
    require(
        method != "adp" or options.members > 1 or options.dropout_samples > 1 or options.gp_inducing_points > 0,
        "adp compares the members of an ensemble: add --members 3, as its paper has.",
    )


_per_member, _with_penalty = schedulable(Method.per_member), schedulable(Method.with_penalty)


def _suited(method: Method, model: object, data: Dataset, options: Train) -> Method:
    """The method as that kind of model needs it."""
    if isinstance(model, DeepKernelGP):
        held_in, _ = training_split(data, options.recipe)
        return _with_penalty(_per_member(method, total=False), 1.0, kl_to_prior(len(held_in)))
    if isinstance(model, MonteCarloDropout) and options.dropout_loss == "mean-of-losses":
        return _per_member(method, total=False)
    return _per_member(method) if isinstance(model, Ensemble) and not options.joint_loss else method


def net_record(options: Train, data: Dataset) -> dict[str, Any]:
    """The network in words: all that is needed to build it again."""
    own = {"width": options.width, "widths": options.widths or None}
    return {
        "name": options.net,
        "shape": list(data.shape),
        "classes": len(data.classes),
        "seed": options.recipe.seed,
        "normalize": _statistics(data) if options.normalize else None,
        "options": {k: v for k, v in own.items() if v is not None} | pairs(options.net_option, "--net-option"),
        "members": options.members,
        "dropout_samples": options.dropout_samples,
        "inducing": options.gp_inducing_points,
    }


def _statistics(data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, or of all features together, over the training samples."""
    x = data.train.x.double()
    channels = x.transpose(0, 1).flatten(1) if x.ndim == 4 else x.reshape(1, -1)
    mean, std = channels.mean(1), channels.std(1)
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())
