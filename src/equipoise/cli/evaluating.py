"""The commands evaluate and merge."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from equipoise.attacks import on_lattice, transfer
from equipoise.attacks.attack import APPLICABLE, asked_for
from equipoise.cli import gating
from equipoise.cli.console import say
from equipoise.cli.display import accuracies, corrupted, evaluation_progress, queries, stages
from equipoise.cli.following import after_evaluation
from equipoise.cli.loaded_model import LoadedModel, load_model, norm_of
from equipoise.cli.recorded import require_file
from equipoise.cli.requests import Evaluate, Merge
from equipoise.cli.shard_processes import evaluate_in_processes
from equipoise.core.errors import require
from equipoise.core.files import require_writable, write_once
from equipoise.core.types import answers_of
from equipoise.corruptions import chosen, load_published
from equipoise.evaluation import WORST, Corruptions, Progress, Shard, evaluate_dataset, merge, radii, suite
from equipoise.evaluation.interop import robustbench
from equipoise.evaluation.journal import images_of
from equipoise.evaluation.requests import comparable
from equipoise.evaluation.runs import STANDARD, evaluation_key
from equipoise.evaluation.suites import Suite
from equipoise.evaluation.summaries import by_ball
from equipoise.evaluation.verification import fingerprint
from equipoise.geometry import Box
from equipoise.masking.result_checks import is_black_box
from equipoise.models import as_predictive, validate_output
from equipoise.report.accuracy import caveats
from equipoise.results.provenance import provenance
from equipoise.results.records import Evaluation, Run, digest
from equipoise.results.records import load as load_record
from equipoise.training import Recipe, load_run


def evaluate(options: Evaluate, command: str) -> int:
    """Evaluate a run or a model of the user's own, write the record, and return the exit code."""
    shard = Shard.parse(options.shard)
    require(
        options.processes == 1 or shard.count == 1,
        f"--processes {options.processes} and --shard {shard} both divide the work: choose one.",
    )
    require(
        options.address is None or options.processes > 1,
        "--address needs --processes: into how many parts the cluster divides the evaluation.",
    )
    names = options.attacks or ()
    require(options.attacks != (), "--attacks needs a value: the name of an attack, or clean for none.")
    twice = [name for name in names if names.count(name) > 1]
    require(not twice, f"--attacks has {''.join(twice[:1])} twice: name every attack once.")
    loaded = load_model(options)
    gating.check(options, loaded.data.shape)
    norm = norm_of(options.norm, loaded.run)
    options = with_attacks(options, loaded, norm)
    attacks = attacks_of(options, loaded, norm)
    out = options.out or _usual_place(options, loaded, attacks, norm, shard)
    _require_free(options, out, loaded.run, attacks, shard)
    stamp, progress = _stamp(out), _from_here(evaluation_progress(f"evaluating {options.target}"))
    if options.processes > 1:
        device = Recipe(device=options.device).pick_device()
        origin = provenance(options.seed, device, command)
        key = evaluation_key(loaded.model, loaded.data, attacks, origin, **_asked(options, loaded))
        classes = validate_output(as_predictive(loaded.model), loaded.data.test.x.to(device)).classes
        request = comparable(key, by_ball(attacks), classes)
        evaluation = evaluate_in_processes(_evaluate_shard, options, out, command, key, request, progress)
    else:
        evaluation = _evaluated(replace(options, out=out), loaded, attacks, command, progress)
    show(evaluation)
    if options.robustbench is not None:
        entry = (json.dumps(robustbench(evaluation), indent=1) + "\n").encode()
        say(f"wrote {write_once(options.robustbench, entry, options.overwrite, '--robustbench')}")
    say(f"{'wrote' if _stamp(out) != stamp else 'finished before:'} {out}, digest {digest(evaluation)[:16]}")
    code = gating.conclude(options, evaluation, out, Box(*loaded.data.box))
    after_evaluation(out, evaluation)
    return code


def _evaluate_shard(options: Evaluate, command: str, progress: Progress) -> Evaluation:
    """Evaluate a shard, in a process of its own."""
    loaded = load_model(options)
    attacks = attacks_of(options, loaded, norm_of(options.norm, loaded.run))
    return _evaluated(options, loaded, attacks, command, progress)


def _evaluated(options: Evaluate, loaded: LoadedModel, attacks: Suite, command: str, progress: Progress) -> Evaluation:
    return evaluate_dataset(
        loaded.model,
        loaded.data,
        attacks,
        seed=options.seed,
        command=command,
        progress=progress,
        out=options.out,
        resume=options.resume,
        overwrite=options.overwrite,
        shard=Shard.parse(options.shard),
        expected_clean_accuracy=options.expected_clean_accuracy,
        **_asked(options, loaded),
    )


def _asked(options: Evaluate, loaded: LoadedModel) -> dict[str, Any]:
    return {
        "target": options.target,
        "examples": options.examples,
        "weights": loaded.weights,
        "batch_size": options.batch_size,
        "images": options.images,
        "corruptions": _corruptions(options),
        "certified": options.certified,
    }


def _require_free(options: Evaluate, out: Path, run: Run | None, attacks: Suite, shard: Shard) -> None:
    """Raise `EquipoiseError` unless the record, and the RobustBench entry if one is asked for, can be written."""
    require_file(out)
    require(
        run is None or out.resolve() != Path(options.target, "run.json").resolve(),
        f"--out {out} is the record of the run itself: choose another place.",
    )
    entry = options.robustbench
    if entry is None:
        return
    require_file(entry, option="--robustbench")
    for file, content in ((out, "the record"), (images_of(out), "the adversarial images")):
        require(entry.resolve() != file.resolve(), f"--robustbench {entry} would overwrite {content}: choose another.")
    require(len(attacks) > 0, "a RobustBench entry needs an attack: evaluate with --attacks autoattack.")
    require(options.lattice is None, "a RobustBench entry is of all points of the ball: leave out --lattice.")
    require(shard.count == 1, f"--robustbench is of a whole evaluation, not of shard {shard}: leave it out.")
    require(
        options.overwrite or out.is_file() or not entry.exists(),
        f"--robustbench {entry} exists already: add --overwrite to replace it, or choose another.",
    )
    require_writable(entry.parent, "--robustbench")


def _stamp(file: Path) -> int | None:
    return file.stat().st_mtime_ns if file.is_file() else None


def _usual_place(options: Evaluate, loaded: LoadedModel, attacks: Suite, norm: str, shard: Shard) -> Path:
    """Where the record goes: a name that tells model, data, attacks, norm and radii apart."""
    proven = [] if options.certified is None else [f"certified-{options.certified}"]
    lattice = [] if options.lattice is None else [f"lattice-{options.lattice}"]
    names = dict.fromkeys([*(options.attacks or ["clean"]), *lattice, *proven, *options.corruptions])
    eps = dict.fromkeys(f"{attack.geometry.eps:.6g}" for _, attack in attacks)
    number = [] if shard.count == 1 else [f"{shard.number}of{shard.count}"]
    last = ["last"] if options.weights == "last" else []
    data = [Path(loaded.data.name).stem] if options.data is not None else []
    if loaded.run and Path(options.target).is_dir():
        return Path(options.target) / f"evaluation-{_slug(*data, *names, norm, *eps, *last, *number)}.json"
    weights = [options.checkpoint.stem] if options.checkpoint else []
    return Path(f"eval-{_slug(options.target, *weights, *data, *names, norm, *eps, *number)}.json")


def _slug(*words: str) -> str:
    """The words in one, as a part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", "-".join(words))


def with_attacks(options: Evaluate, loaded: LoadedModel, norm: str) -> Evaluate:
    """The same with the usual attacks where none are named: those that apply to the model, in this norm."""
    if options.attacks is not None:
        return options
    answers = answers_of(as_predictive(loaded.model))
    if answers == "gradients":
        return replace(options, attacks=STANDARD)
    usual = [name for name in APPLICABLE[answers][:2] if name != "hop-skip-jump" or norm in ("linf", "l2")]
    say(f"attacks: {', '.join(usual)}, as the model gives {answers} alone; those that follow gradients do not apply.")
    return replace(options, attacks=tuple(usual))


def attacks_of(options: Evaluate, loaded: LoadedModel, norm: str) -> Suite:
    """The attacks that were asked for, and their transfer from every other run, of those that use gradients. On a model
    without gradients these are transferred only.
    """
    run, black_box = loaded.run, answers_of(as_predictive(loaded.model)) != "gradients"
    own = suite(
        options.attacks or (),
        options.eps or (radii(run) if run and norm == run.recipe.get("valid_norm") else ()),
        norm,
        steps=options.steps,
        step_size=options.step_size,
        restarts=options.restarts,
        queries=options.queries,
        precision=options.precision,
        box=Box(*loaded.data.box),
    )
    if options.lattice is not None:
        own = [(f"{name} on {options.lattice + 1} values", on_lattice(attack, options.lattice)) for name, attack in own]
    transferred = []
    for folder in options.transfer_from:
        proxy, _ = load_run(folder, device=Recipe(device=options.device).pick_device())
        sha = fingerprint(proxy)["sha256"]
        transferred += [
            (f"{name} from {folder}", transfer(proxy, attack, str(folder), sha))
            for name, attack in own
            if not is_black_box(name)
        ]
    require(
        not options.transfer_from or len(transferred) > 0, "--transfer-from needs an attack that asks for gradients."
    )
    kept = [(name, a) for name, a in own if not (black_box and transferred and asked_for(a) == "gradients")]
    return by_ball([*kept, *transferred])


def _corruptions(options: Evaluate) -> Corruptions | None:
    """The corruptions that were asked for, with their published images if their folder was given."""
    if not options.corruptions:
        require(options.corruptions_root is None, "--corruptions-root needs --corruptions, such as mnist-c.")
        return None
    names, root = chosen(options.corruptions), options.corruptions_root
    return Corruptions(names, None if root is None else load_published(root, names))


def _from_here(progress: Progress) -> Progress:
    """Report progress relative to the first call, so that the remaining time follows from the work done since."""
    begun: int | None = None

    def report(what: str, done: int, total: int) -> None:
        nonlocal begun
        begun = done if begun is None else begun
        progress(what, done - begun, total - begun)

    return report


def merge_records(options: Merge) -> None:
    """Put the records of all shards together."""
    require(len(options.records) > 0, "there is nothing to merge: give the records of all shards.")
    first = options.records[0]
    load_record(first)  # a record that cannot be read is named before its place is asked for
    usual = re.sub(r"-\d+of\d+$", "", first.stem)
    require(
        options.out is not None or usual != first.stem,
        f"say where to write the whole record, with --out: the name of {first} does not tell.",
    )
    out = options.out or first.with_name(f"{usual}{first.suffix}")
    require_file(out)
    whole = merge(options.records, out, overwrite=options.overwrite)
    show(whole)
    say(f"wrote {out}, digest {digest(whole)[:16]}")
    after_evaluation(out, whole)


def show(*evaluations: Evaluation) -> None:
    """Print the accuracies, what each part of a composite attack left, and what to know before citing them."""
    data = evaluations[0].data
    part = f" (shard {data['shard']})" if "shard" in data else ""
    n = evaluations[0].results[0].n
    say(f"accuracy on {n} test samples of {data['name']}{part}, with 95 % intervals")
    say(accuracies(evaluations))
    for evaluation in evaluations:
        for table in (stages(evaluation), corrupted(evaluation), queries(evaluation)):
            if table is not None:
                say(table)
    cautions = [caution for evaluation in evaluations for caution in _cautions(evaluation)]
    for note in dict.fromkeys([*cautions, *(w for evaluation in evaluations for w in evaluation.warnings)]):
        say(f"note: {note}")
    for flag in dict.fromkeys(str(flag) for evaluation in evaluations for flag in evaluation.flags):
        say(f"flag: {flag}")


def _cautions(evaluation: Evaluation) -> list[str]:
    """What to say beside accuracies under attack: that the attacks are weak, or the samples few."""
    _, *attacked = evaluation.results
    if not attacked:
        return []
    widest = max(attacked, key=lambda result: result.interval[1] - result.interval[0])
    attacks, gradients = [r for r in attacked if r.attack != WORST], "answers" not in evaluation.model
    return caveats(widest, attacks, evaluation.data.get("n_test"), gradients)
