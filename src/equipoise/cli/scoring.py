"""The score command: how robust is a model, in a sense that is spelt out?"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional

from equipoise import nets, scores
from equipoise.certified import certified
from equipoise.cli.display import duration, moving, say, share_progress
from equipoise.cli.recorded import answered
from equipoise.core.errors import EquipoiseError, require, unknown
from equipoise.core.files import require_writable, write_atomically
from equipoise.evaluation.verification import fingerprint
from equipoise.geometry import Ball, NormName
from equipoise.report.figures import canvas
from equipoise.report.studies import page
from equipoise.results.findings import Study
from equipoise.results.provenance import provenance
from equipoise.results.records import ScoreCurve, ScoreResult, Scores, save
from equipoise.scores import Estimate
from equipoise.scores.pictures import described, won
from equipoise.training import Recipe, load_manifold
from equipoise.training.penalties import Radii

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


@dataclass(frozen=True)
class Score:
    """Measure how robust a model is, in a sense that is spelt out: what is near, what counts, how radii are weighed.

    Example: equipoise score runs/udp --score r2 --examples 1000 --out r2.json
    """

    target: Positional[str]
    """A run directory, or a model of your own as package.module:factory."""
    score: str = "r2"
    """r1: mean margin over the whole box; r2: mean margin of the data, by the nearest of several attacks; r2-published:
    by those of the paper; label-aware: as r2, 0 where the prediction is wrong; manifold: margin along the data; r4:
    average agreement along the data; or a score of your own as package.module:score."""
    examples: int = 1000
    """Test samples, or points of the box; 0 for the whole test set."""
    norm: NormName = "l2"
    """Norm of the distances."""
    manifold: Path | None = None
    """The auto-encoder of r4 and manifold: a run directory of r4 or of on-manifold, or its file; by default that of the
    run itself."""
    samples: int | None = None
    """r4 and manifold: samples near each input; by default 200."""
    sigma: float | None = None
    """r4 and manifold: deviation of the noise on an input's code; by default 0.06."""
    radii: Radii | None = None
    """r4: uniform up to the diameter of the box, from a 200th of it on (the default), or the samples' distances."""
    certified: FlagCreatePairsOff[bool] = False
    """Bound r2 or label-aware from below too, by a certificate; for networks of linear, convolutional, ReLU and pooling
    layers."""
    certificate: Literal["crown", "crown-ibp", "ibp"] | None = None
    """Which certificate: crown, the tightest (the default), which takes minutes a sample for a convolutional network;
    crown-ibp; or ibp, the fastest."""
    data: str | None = None
    """Dataset or file, as for train; by default that of the run."""
    data_root: Path | None = None
    """Where the files of a dataset are looked for."""
    weights: Literal["best", "last"] = "best"
    """Which weights of a run."""
    checkpoint: Path | None = None
    """Weights for a package.module:factory: a safetensors file, or a state_dict that torch.save wrote."""
    net_option: tuple[str, ...] = ()
    """Arguments of a package.module:factory, as key=value."""
    batch_size: int = 64
    """Samples at a time; the result does not depend on it."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    out: Path = Path("score.json")
    """Where the record is written, with every sample's value; a page with the curve beside it, as .html."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the record in --out, if it answers another request; the same request is answered from it."""


def score(options: Score, command: str) -> None:
    """Estimate a score, write its record and its page, and say what came out.

    Raises `EquipoiseError` before anything is computed for an unknown score, an unusable --out or a missing manifold.
    """
    from equipoise.cli.evaluating import subject_of
    from equipoise.cli.options import Evaluate

    out = options.out
    require(not out.is_dir(), f"--out {out} is a directory: expected a file, such as r2.json.")
    require(out.suffix == ".json", f"--out {out}: expected a file that ends in .json.")
    require_writable(out.parent)
    require(options.examples >= 0, f"--examples {options.examples}: expected a number of samples, or 0 for all.")
    require(options.batch_size >= 1, f"--batch-size {options.batch_size}: expected an integer >= 1.")
    canvas(1, 1)  # is matplotlib there?
    shared = ("data", "data_root", "weights", "checkpoint", "net_option", "seed", "device")
    subject = subject_of(Evaluate(options.target, **{name: getattr(options, name) for name in shared}))
    device = Recipe(device=options.device).pick_device()
    test = subject.data.test
    test = (test.limit(options.examples, options.seed) if options.examples else test).to(device)
    chosen = _chosen(options, tuple(test.x.shape[1:]))
    about = {
        "model": fingerprint(subject.model),
        "data": {"name": subject.data.name, "sha256": subject.data.sha256, "split": "test", "n": len(test)},
    }
    before = answered(out, out.with_suffix(".html"), options, about, options.overwrite)
    if before is not None:
        for name, one in before["scores"].items():
            say(f"{name} is {one['value']:.4g}")
        say(f"finished before: {out}")
        return
    if options.certified:
        certified(subject.model, test.x[:1], None, Ball(options.norm, 0.0), "ibp")  # can it be bounded at all?
    began = time.monotonic()
    found = {}
    for number, (name, one) in enumerate(chosen.items()):
        tell = share_progress(f"{name} of {options.target}")
        found[name] = one(
            subject.model,
            test.x,
            test.y,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=lambda done, of, n=number, tell=tell: tell(
                f"{done} of {of} samples", (n + done / of) / len(chosen)
            ),
        )
    moving("")
    seconds = time.monotonic() - began
    origin = provenance(options.seed, device, command)
    findings = described(found, subject.data.classes)
    study = Study(
        next(iter(found.values())).score.name,
        f"How robust is {options.target} on {subject.data.name}?",
        "F, Secs. 2 to 6",
        findings,
        asdict(origin),
        seconds=seconds,
    )
    record = Scores(
        target=options.target,
        scores={name: _result(estimate) for name, estimate in found.items()},
        provenance=origin,
        weights=options.weights if subject.recorded else "given",
        seconds=seconds,
        **about,
    )
    text = page(study, record=out.name)
    save(out, record)
    write_atomically(out.with_suffix(".html"), text)
    say(_table(found))
    say(f"wrote {out} and {out.with_suffix('.html')} in {duration(seconds)}")


def _chosen(options: Score, shape: tuple[int, ...]) -> dict[str, scores.Score]:
    """The scores to estimate, by what they are called."""
    name = options.score
    require(
        not options.certified or name in ("r2", "label-aware"),
        f"--certified bounds r2 and label-aware from below, not {name}: leave it out.",
    )
    require(options.certified or options.certificate is None, "--certificate needs --certified.")
    typed = {flag: value for flag in _ALONG if (value := getattr(options, flag)) is not None}
    for flag in typed:
        users = [one for one, make in _SCORES.items() if flag in signature(make).parameters]
        require(name in users, f"--{flag} is for {' and '.join(users)}, not for {name}: leave it out.")
    if ":" in name:
        one = nets.imported("score", name)
        if callable(one) and not isinstance(one, scores.Score):
            try:
                one = one(shape)
            except EquipoiseError:
                raise
            except Exception as error:  # whatever the user's function does
                raise EquipoiseError(f"--score {name} could not be made: {type(error).__name__}: {error}.") from error
        if not isinstance(one, scores.Score):
            raise EquipoiseError(
                f"--score {name} is a {type(one).__name__}: expected an equipoise.scores.Score, or a function of the "
                "shape of one input that returns one."
            )
        return {one.name: one}
    if name not in _SCORES:
        raise unknown("score", name, [*_SCORES, "package.module:score"])
    if "manifold" in signature(_SCORES[name]).parameters:
        place = options.manifold or Path(options.target)
        try:
            manifold = load_manifold(place)
        except EquipoiseError as error:
            wanted = "" if options.manifold else f"--score {name} needs the manifold of the data: "
            advice = "" if options.manifold else " Train one by equipoise train r4, and give it as --manifold RUN."
            raise EquipoiseError(f"{wanted}{error}{advice}") from error
        return {name: _SCORES[name](**typed | {"manifold": manifold}, shape=shape, norm=options.norm)}
    found = {name: _SCORES[name](shape, norm=options.norm)}
    if options.certified:
        method, aware = options.certificate or "crown", name == "label-aware"
        found["certified"] = scores.certified_r2(shape, options.norm, method, label_aware=aware)
    return found


def _result(estimate: Estimate) -> ScoreResult:
    """An estimate as a record; an infinite margin, where nothing was found, as null."""
    found, margins, (low, high) = estimate.found, estimate.margins, estimate.band
    per_sample: dict[str, Any] = {"values": estimate.values.tolist()}
    if margins is not None:
        per_sample["margins"] = [value if math.isfinite(value) else None for value in margins.tolist()]
    if found is not None:
        per_sample |= {"found_by": found.part.tolist(), "prediction": found.prediction.tolist()}
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


def _table(found: dict[str, Estimate]) -> Table:
    """Each score with its interval, and who found the nearest points."""
    table = Table()
    for name, side in (("score", "left"), ("value", "right"), ("95 % interval", "right"), ("n", "right")):
        table.add_column(name, justify="right" if side == "right" else "left")
    table.add_column("nearest points by", overflow="fold")
    for estimate in found.values():
        low, high = estimate.interval
        shares = ", ".join(f"{name} {share:.1%}" for name, share in won(estimate).items())
        span = f"{low:.4g} to {high:.4g}" if len(estimate) > 1 else "–"
        table.add_row(estimate.score.name, f"{estimate.value:.4g}", span, str(len(estimate)), shares)
    return table
