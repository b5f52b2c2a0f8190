"""The score command: robustness scores of a model."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

from rich.table import Table

from equipoise import nets, scores
from equipoise.certified import certified
from equipoise.cli.console import duration, moving, say
from equipoise.cli.display import share_progress
from equipoise.cli.following import to_report
from equipoise.cli.loaded_model import LoadedModel, load_model
from equipoise.cli.recorded import answered, require_file
from equipoise.cli.requests import Score
from equipoise.core.errors import EquipoiseError, kind_of, require, unknown
from equipoise.core.files import require_writable, write_atomically
from equipoise.data.dataset import Split
from equipoise.evaluation.verification import fingerprint
from equipoise.geometry import Ball, Box
from equipoise.report.figures import canvas
from equipoise.report.studies import page
from equipoise.results.findings import Study
from equipoise.results.provenance import provenance
from equipoise.results.records import ScoreCurve, ScoreResult, Scores, save
from equipoise.scores import Estimate
from equipoise.scores.pictures import described, won
from equipoise.training import Recipe, load_manifold

_SCORES: dict[str, Callable[..., scores.Score]] = {
    "r1": scores.r1,
    "r2": scores.r2,
    "r2-published": scores.published_r2,
    "r4": scores.r4,
    "manifold": scores.on_manifold,
    "label-aware": scores.label_aware,
}
_ALONG = ("manifold", "samples", "sigma", "radii")
"""Flags of the scores along the data."""


def score(options: Score, command: str) -> None:
    """Estimate a score, write its record and its page, and say what came out.

    Raises `EquipoiseError` before anything is computed for an unknown score, an unusable --out or a missing manifold.
    """
    out, page_file = options.out, options.out.with_suffix(".html")
    require_file(out, ".json")
    require_writable(out.parent)
    canvas(1, 1)  # is matplotlib there?
    loaded = load_model(options)
    device = Recipe(device=options.device).pick_device()
    test = loaded.data.test
    test = (test.limit(options.examples, options.seed) if options.examples else test).to(device)
    chosen = _chosen(options, tuple(test.x.shape[1:]), Box(*loaded.data.box))
    about = {
        "model": fingerprint(loaded.model),
        "data": {"name": loaded.data.name, "sha256": loaded.data.sha256, "split": "test", "n": len(test)},
    }
    before = answered(out, page_file, options, about, options.overwrite)
    if before is not None:
        for name, result in before["scores"].items():
            say(f"{name} is {result['value']:.4g}")
        say(f"finished before: {out}")
        to_report(options.target, out)
        return
    if options.certified:
        certified(loaded.model, test.x[:1], None, Ball(options.norm, 0.0), "ibp")  # can it be bounded at all?
    began = time.monotonic()
    estimates = _estimated(options, loaded, test, chosen)
    seconds = time.monotonic() - began
    origin = provenance(options.seed, device, command)
    study = Study(
        next(iter(estimates.values())).score.name,
        f"How robust is {options.target} on {loaded.data.name}?",
        "F, Secs. 2 to 6",
        described(estimates, loaded.data.classes),
        asdict(origin),
        seconds=seconds,
    )
    record = Scores(
        target=options.target,
        scores={name: _result(estimate) for name, estimate in estimates.items()},
        provenance=origin,
        weights=loaded.weights,
        seconds=seconds,
        **about,
    )
    text = page(study, record=out.name)
    save(out, record)
    write_atomically(page_file, text)
    say(_table(estimates))
    say(f"wrote {out} and {page_file} in {duration(seconds)}")
    to_report(options.target, out)


def _estimated(
    options: Score, loaded: LoadedModel, test: Split, chosen: dict[str, scores.Score]
) -> dict[str, Estimate]:
    """The estimates of scores, with progress over all of them."""
    estimates = {}
    for number, (name, definition) in enumerate(chosen.items()):
        show = share_progress(f"{name} of {options.target}")

        def report(done: int, of: int, number: int = number, show: Callable[[str, float], None] = show) -> None:
            show(f"{done} of {of} samples", (number + done / of) / len(chosen))

        estimates[name] = definition(
            loaded.model, test.x, test.y, seed=options.seed, batch_size=options.batch_size, progress=report
        )
    moving("")
    return estimates


def _chosen(options: Score, shape: tuple[int, ...], box: Box) -> dict[str, scores.Score]:
    """The scores to estimate, by what they are called."""
    name = options.score
    require(
        not options.certified or name in ("r2", "label-aware"),
        f"--certified bounds r2 and label-aware from below, not {name}: leave it out.",
    )
    require(options.certified or options.certificate is None, "--certificate needs --certified.")
    typed = {flag: value for flag in _ALONG if (value := getattr(options, flag)) is not None}
    for flag in typed:
        users = [user for user, make in _SCORES.items() if flag in signature(make).parameters]
        require(name in users, f"--{flag} is for {' and '.join(users)}, not for {name}: leave it out.")
    if ":" in name:
        own = _own_score(name, shape)
        return {own.name: own}
    if name not in _SCORES:
        raise unknown("score", name, [*_SCORES, "package.module:score"])
    parameters = signature(_SCORES[name]).parameters
    within: dict[str, Any] = {} if box == Box() else {"box": box}
    require(
        not within or ("box" in parameters and not options.certified),
        f"--score {name}: the data range over {box.low:g} to {box.high:g}, and that is computed in [0, 1] alone.",
    )
    if "manifold" in parameters:
        try:
            manifold = load_manifold(options.manifold or Path(options.target))
        except EquipoiseError as error:
            wanted = "" if options.manifold else f"--score {name} needs the manifold of the data: "
            advice = "" if options.manifold else " Train one by equipoise train r4, and give it as --manifold RUN."
            raise EquipoiseError(f"{wanted}{error}{advice}") from error
        return {name: _SCORES[name](**typed | {"manifold": manifold}, shape=shape, norm=options.norm, **within)}
    chosen = {name: _SCORES[name](shape, norm=options.norm, **within)}
    if options.certified:
        method, aware = options.certificate or "crown", name == "label-aware"
        chosen["certified"] = scores.certified_r2(shape, options.norm, method, label_aware=aware)
    return chosen


def _own_score(name: str, shape: tuple[int, ...]) -> scores.Score:
    """The score, or the function that makes it, of `package.module:score`."""
    own = nets.imported("score", name)
    if callable(own) and not isinstance(own, scores.Score):
        try:
            own = own(shape)
        except EquipoiseError:
            raise
        except Exception as error:  # whatever the user's function does
            raise EquipoiseError(f"--score {name} could not be made: {type(error).__name__}: {error}.") from error
    if not isinstance(own, scores.Score):
        raise EquipoiseError(
            f"--score {name} is {kind_of(own)}: expected an equipoise.scores.Score, or a function of the shape "
            "of one input that returns one."
        )
    return own


def _result(estimate: Estimate) -> ScoreResult:
    """An estimate as a record; an infinite margin, where nothing was found, as null."""
    nearest, margins, (low, high) = estimate.found, estimate.margins, estimate.band
    per_sample: dict[str, Any] = {"values": estimate.values.tolist()}
    if margins is not None:
        per_sample["margins"] = [value if math.isfinite(value) else None for value in margins.tolist()]
    if nearest is not None:
        per_sample |= {"found_by": nearest.part.tolist(), "prediction": nearest.prediction.tolist()}
    return ScoreResult(
        value=estimate.value,
        n=len(estimate),
        curve=ScoreCurve(estimate.radii.tolist(), estimate.curve.tolist(), [low.tolist(), high.tolist()]),
        settings=estimate.score.settings(),
        standard_error=estimate.error if len(estimate) > 1 else None,
        interval=estimate.interval if len(estimate) > 1 else None,
        won=won(estimate),
        samples=per_sample,
    )


def _table(estimates: dict[str, Estimate]) -> Table:
    """Each score with its interval, and who found the nearest points."""
    table = Table()
    for name, side in (("score", "left"), ("value", "right"), ("95 % interval", "right"), ("n", "right")):
        table.add_column(name, justify="right" if side == "right" else "left")
    table.add_column("nearest points by", overflow="fold")
    for estimate in estimates.values():
        low, high = estimate.interval
        shares = ", ".join(f"{name} {share:.1%}" for name, share in won(estimate).items())
        span = f"{low:.4g} to {high:.4g}" if len(estimate) > 1 else "–"
        table.add_row(estimate.score.name, f"{estimate.value:.4g}", span, str(len(estimate)), shares)
    return table
