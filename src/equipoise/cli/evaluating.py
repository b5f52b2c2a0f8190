"""The commands that measure: evaluate, verify, merge."""

import json
import math
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from equipoise import nets
from equipoise.attacks import fitted, transfer
from equipoise.cli.display import accuracies, corrupted, evaluation_progress, say, stages
from equipoise.cli.options import Evaluate, Merge, Train, Verify, net_options, parse
from equipoise.cli.recorded import from_data
from equipoise.cli.workers import noting, own_note, progress_of, require_alive, workers
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.files import require_room, write_once
from equipoise.core.locks import locked
from equipoise.core.types import Predictive
from equipoise.corruptions import chosen, load_published
from equipoise.data import Dataset, load
from equipoise.evaluation import WORST, Corruptions, Progress, Shard, audit, evaluate_dataset, merge, radii, suite
from equipoise.evaluation.interop import robustbench
from equipoise.evaluation.journal import Journal, images_of, note_kept
from equipoise.evaluation.requests import comparable, finished
from equipoise.evaluation.runs import evaluation_key
from equipoise.evaluation.shards import merged
from equipoise.evaluation.suites import Suite
from equipoise.evaluation.summaries import by_ball
from equipoise.evaluation.verification import fingerprint, read
from equipoise.masking.result_checks import is_black_box
from equipoise.models import as_predictive, validate_output
from equipoise.report.accuracy import caveats
from equipoise.results.provenance import provenance
from equipoise.results.records import Evaluation, Run, digest
from equipoise.results.records import load as load_record
from equipoise.training import Recipe, load_run, load_weights

_SHOWN = 20  # mismatches of a record that are printed
_PAUSE = 0.1  # seconds between two looks at the processes
_PATIENCE = 10.0  # seconds for the processes of an earlier call to be gone
_FINE = 1000  # units of progress per block


@dataclass(frozen=True)
class LoadedModel:
    """What is evaluated: a model, its data, and the record of its training if it is a run."""

    model: nn.Module | Predictive
    data: Dataset
    recorded: Run | None


def subject_of(options: Evaluate) -> LoadedModel:
    """The model that was asked for, and its data. Raises `EquipoiseError` if one of them cannot be had."""
    device = Recipe(device=options.device).pick_device()
    target = Path(options.target)
    if not (target / "run.json").is_file():
        _require_factory(options)
        data = load(str(options.data), options.data_root)
        say(data.summary)
        model = _own_model(options, data)
        as_predictive(model).module.to(device)
        return LoadedModel(model, data, None)
    model, recorded = load_run(target, options.weights, device)
    data = _data_of(options, recorded)
    say(data.summary)
    _require_fit(recorded, data)
    return LoadedModel(model, data, recorded)


def evaluate(options: Evaluate, command: str) -> None:
    """Evaluate a run or a model of the user's own, and write the record."""
    shard = Shard.parse(options.shard)
    require(options.processes >= 1, f"--processes {options.processes} computes nothing: expected an integer >= 1.")
    require(
        options.processes == 1 or shard.count == 1,
        f"--processes {options.processes} and --shard {shard} both divide the work: choose one.",
    )
    subject = subject_of(options)
    recorded = subject.recorded
    norm = norm_of(options.norm, recorded)
    attacks = _attacks(options, recorded, norm)
    corruptions = _corruptions(options)
    out = options.out or _usual_place(options, subject, attacks, norm, shard)
    require(not out.is_dir(), f"--out {out} is a directory: expected a file.")
    require(
        recorded is None or out.resolve() != Path(options.target, "run.json").resolve(),
        f"--out {out} is the record of the run itself: choose another place.",
    )
    if options.robustbench is not None:
        place = options.robustbench
        require(not place.is_dir(), f"--robustbench {place} is a directory: expected a file.")
        for file, what in ((out, "the record"), (images_of(out), "the adversarial images")):
            require(place.resolve() != file.resolve(), f"--robustbench {place} would overwrite {what}: choose another.")
        require(len(attacks) > 0, "a RobustBench entry needs an attack: evaluate with --attacks autoattack.")
        require(shard.count == 1, f"--robustbench is of a whole evaluation, not of shard {shard}: leave it out.")
        require(
            options.overwrite or out.is_file() or not place.exists(),
            f"--robustbench {place} exists already: add --overwrite to replace it, or choose another.",
        )
        require_room(place.parent, "--robustbench")
    weights = options.weights if recorded else "given"
    note = own_note()
    progress = noting(note) if note else _from_here(evaluation_progress(f"evaluating {options.target}"))
    stamp = _stamp(out)
    device = Recipe(device=options.device).pick_device()
    if options.processes > 1:
        require(options.examples >= 0, f"--examples {options.examples}: expected a number of samples, or 0 for all.")
        require(options.batch_size >= 1, f"--batch-size {options.batch_size}: expected an integer >= 1.")
        what = evaluation_key(
            subject.model,
            subject.data,
            attacks,
            provenance(options.seed, device, command),
            target=options.target,
            examples=options.examples,
            weights=weights,
            batch_size=options.batch_size,
            images=options.images,
            corruptions=corruptions,
        )
        classes = validate_output(as_predictive(subject.model), subject.data.test.x.to(device)).classes
        request = comparable(what, by_ball(attacks), classes)
        evaluation = _in_processes(options, out, command, what, request, progress)
    else:
        evaluation = evaluate_dataset(
            subject.model,
            subject.data,
            attacks,
            target=options.target,
            examples=options.examples,
            weights=weights,
            seed=options.seed,
            batch_size=options.batch_size,
            command=command,
            progress=progress,
            out=out,
            resume=options.resume,
            overwrite=options.overwrite,
            images=options.images,
            shard=shard,
            reported=options.reported,
            corruptions=corruptions,
        )
    show(evaluation)
    if options.robustbench is not None:
        entry = (json.dumps(robustbench(evaluation), indent=1) + "\n").encode()
        say(f"wrote {write_once(options.robustbench, entry, options.overwrite, '--robustbench')}")
    say(f"{'wrote' if _stamp(out) != stamp else 'finished before:'} {out}, digest {digest(evaluation)[:16]}")


def _stamp(file: Path) -> int | None:
    """When a file was written; None if there is none."""
    return file.stat().st_mtime_ns if file.is_file() else None


def _usual_place(options: Evaluate, subject: LoadedModel, attacks: Suite, norm: str, shard: Shard) -> Path:
    """Where the record goes: a name that tells model, data, attacks, norm and radii apart."""
    names = dict.fromkeys([*(options.attacks or ["clean"]), *options.corruptions])
    eps = dict.fromkeys(f"{attack.geometry.eps:.6g}" for _, attack in attacks)
    part = [] if shard.count == 1 else [f"{shard.number}of{shard.count}"]
    last = ["last"] if options.weights == "last" else []
    data = [Path(subject.data.name).stem] if options.data is not None else []
    if subject.recorded:
        return Path(options.target) / f"evaluation-{_slug(*data, *names, norm, *eps, *last, *part)}.json"
    weights = [options.checkpoint.stem] if options.checkpoint else []
    return Path(f"eval-{_slug(options.target, *weights, *data, *names, norm, *eps, *part)}.json")


def _slug(*words: str) -> str:
    """The words in one, as a part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", "-".join(words))


def norm_of(typed: str | None, recorded: Run | None) -> str:
    """The norm that was asked for, or else that of the run's validation attacks, or linf."""
    return typed or (recorded.recipe.get("valid_norm", "linf") if recorded else "linf")


def _attacks(options: Evaluate, recorded: Run | None, norm: str) -> Suite:
    """The attacks that were asked for, and those of gradients on every proxy as well."""
    own = suite(
        options.attacks,
        options.eps or (radii(recorded) if recorded and norm == recorded.recipe.get("valid_norm") else ()),
        norm,
        steps=options.steps,
        step_size=options.step_size,
        restarts=options.restarts,
        precision=options.precision,
    )
    moved = []
    for place in options.transfer_from:
        proxy, _ = load_run(place, device=Recipe(device=options.device).pick_device())
        sha = fingerprint(proxy)["sha256"]
        moved += [
            (f"{name} from {place}", transfer(proxy, attack, str(place), sha))
            for name, attack in own
            if not is_black_box(name)
        ]
    require(not options.transfer_from or len(moved) > 0, "--transfer-from needs an attack that asks for gradients.")
    return by_ball([*own, *moved])


def _corruptions(options: Evaluate) -> Corruptions | None:
    """The corruptions that were asked for, with their published images if their folder was given."""
    if not options.corruptions:
        require(options.corruptions_root is None, "--corruptions-root needs --corruptions, such as mnist-c.")
        return None
    names, root = chosen(options.corruptions), options.corruptions_root
    return Corruptions(names, None if root is None else load_published(root, names))


def _from_here(progress: Progress) -> Progress:
    """The same, of the work that is left at the first call: the time the rest will take follows from that alone."""
    begun: int | None = None

    def report(what: str, done: int, total: int) -> None:
        nonlocal begun
        begun = done if begun is None else begun
        progress(what, done - begun, total - begun)

    return report


def _in_processes(
    options: Evaluate,
    out: Path,
    command: str,
    what: Mapping[str, Any],
    request: Mapping[str, Any],
    progress: Progress,
) -> Evaluation:
    """The shards of the evaluation, each computed by a process of its own, put together.

    They lie in the journal of the whole, which says what they are of: to resume is to start them again.
    """
    count = options.processes
    blocks = range(math.ceil(what["data"]["n"] / options.batch_size))
    sizes = [len(Shard(number, count).of(blocks)) for number in range(1, count + 1)]
    journal = Journal.of(out, {**what, "processes": count})
    places = {number: journal.folder / f"{number}of{count}.json" for number in range(1, count + 1)}
    notes = {number: place.with_suffix(".progress") for number, place in places.items()}
    with locked(out):
        before = finished(out, request, options.overwrite or (options.resume and journal.is_begun))
        if before is not None:
            return before
        journal.claim(options.resume, options.overwrite)
        journal.begin()
        for place in places.values():  # processes of an earlier call that was killed end within seconds
            with locked(place, _PATIENCE):
                pass
        commands = {n: _shard_words(command, n, count, place) for n, place in places.items() if not place.is_file()}

        def look() -> None:
            shares = [1.0 if places[n].is_file() else progress_of(notes[n]) for n in places]
            done = sum(size * share for size, share in zip(sizes, shares, strict=True))
            progress(f"{count} processes", int(_FINE * done), _FINE * len(blocks))

        try:
            with workers(commands, notes, max(torch.get_num_threads() // count, 1)) as started:
                while any(worker.process.poll() is None for worker in started.values()):
                    require_alive(started, count)
                    look()
                    time.sleep(_PAUSE)
                require_alive(started, count)
        except KeyboardInterrupt as stop:
            note_kept(stop, *_finished(list(places.values()), sizes))
            raise
        look()
        whole = merged(list(places.values()), out, command, overwrite=True)
        journal.discard()
    return whole


def _finished(places: Sequence[Path], sizes: Sequence[int]) -> tuple[int, int, int]:
    """How many blocks several processes have finished, of how many, and how many attacks on others."""
    folders = [Path(f"{place}.partial") for place in places]
    blocks = sum(
        size if place.is_file() else len(list(folder.glob("block-*.json")))
        for size, place, folder in zip(sizes, places, folders, strict=True)
    )
    return blocks, sum(sizes), sum(len(list(folder.glob("block-*.pt"))) for folder in folders)


def _shard_words(command: str, number: int, count: int, place: Path) -> list[str]:
    """The command line of one of the processes that share the work of `command`."""
    typed = iter(shlex.split(command)[1:])
    words = []
    for word in typed:
        if word == "--robustbench":  # of the whole alone
            next(typed, None)
        elif not word.startswith("--robustbench=") and word != "--overwrite":
            words.append(word)
    return [*words, "--processes", "1", "--shard", f"{number}/{count}", "--out", str(place), "--resume"]


def verify(options: Verify) -> None:
    """Check a record against its stored images, and say what came of it. Raises `EquipoiseError` if it is not true."""
    record = read(options.record)
    typed = _typed(record, options.record)
    subject = subject_of(_as_typed(options, record, typed))
    data, told = subject.data, record.data
    require(
        data.sha256 == told["sha256"],
        f"{data.name} is not the data that {options.record} is about (SHA-256 {data.sha256}, recorded "
        f"{told['sha256']}): give it with --data.",
    )
    have = {"split": "test", "n_test": len(data.test)} | ({} if options.data else {"name": data.name})
    require(
        told["n"] <= len(data.test) and all(told.get(key) == value for key, value in have.items()),
        f"{options.record} does not hold: its data is {dict(told)}, but that SHA-256 is of {have}.",
    )
    test = data.test.limit(told["n"])
    rows = torch.tensor(record.index or range(len(test)))
    corruptions = None
    root = options.corruptions_root or (typed.corruptions_root if typed else None)
    if root is not None and record.corruptions:
        names = chosen([result.corruption for result in record.corruptions])
        corruptions = Corruptions(names, load_published(root, names)).of(data, told["n"])
    found = audit(options.record, subject.model, test.x.cpu()[rows], test.y.cpu()[rows], corruptions=corruptions)
    mismatches = [*found.mismatches, *(_unasked(typed, record, subject) if typed else ())]
    for mismatch in mismatches[:_SHOWN]:
        say(f"not true: {mismatch}")
    require(
        not mismatches,
        f"{options.record} does not hold: {len(mismatches)} of its statements are not true.",
    )
    require(
        found.unchecked == 0,
        f"{options.record} has no images for {found.unchecked} of its successes, which were not checked (its "
        f"{found.claims} other claims hold): evaluate again with --images.",
    )
    say(
        f"{options.record} holds: {found.claims} claims inferred again, digest {digest(record)[:16]}; that the other "
        "samples withstand the attacks no image can show, only evaluating again"
    )


def _typed(record: Evaluation, where: Path) -> Evaluate | None:
    """The options of `equipoise evaluate` that the record was made with; None if a call from Python made it.

    Records of the first version have the text of the command instead. Raises `EquipoiseError` for options that are no
    such ones.
    """
    if record.provenance.options.get("command") == "evaluate":
        return from_data(Evaluate, record.provenance.options, str(where))
    try:
        words = shlex.split(record.provenance.command)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # what is wrong with it is nobody's mistake
            typed = parse(words[1:]) if words[:2] == ["equipoise", "evaluate"] else None
    except (ValueError, SystemExit):
        return None
    return typed if isinstance(typed, Evaluate) else None


def _as_typed(options: Verify, record: Evaluation, typed: Evaluate | None) -> Evaluate:
    """The options with which the record's model and data are found again."""
    before = typed or Evaluate(record.target, weights="last" if record.weights == "last" else "best")
    return replace(
        before,
        target=options.target or before.target,
        data=options.data or before.data,
        data_root=options.data_root or before.data_root,
        checkpoint=options.checkpoint or before.checkpoint,
        device="cpu",
    )


def _unasked(typed: Evaluate, record: Evaluation, subject: LoadedModel) -> list[str]:
    """What in the record is not what its own command asks for."""
    recorded = subject.recorded
    attacks = _attacks(typed, recorded, norm_of(typed.norm, recorded))
    classes = validate_output(as_predictive(subject.model), subject.data.test.x.cpu()).classes
    asked = [(name, fitted(name, attack, classes)[0].settings()) for name, attack in attacks]
    told = [(r.attack, r.settings) for r in record.results if r.attack not in ("clean", WORST)]
    if _essence(asked) != _essence(told):
        return ["its attacks, with their settings, are not those that its command asks for."]
    if [r.corruption for r in record.corruptions] != list(chosen(typed.corruptions) if typed.corruptions else ()):
        return ["its corruptions are not those that its command asks for."]
    own = {"target": typed.target, "seed": typed.seed, "weights": typed.weights if recorded else "given"}
    has = {"target": record.target, "seed": record.provenance.seed, "weights": record.weights}
    return [f"its command asks for {key} {own[key]}, it has {has[key]}." for key in own if own[key] != has[key]]


def _essence(attacks: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """Names and settings as JSON has them, without what only the outcome tells."""
    kept = [(name, {k: v for k, v in s.items() if k not in ("refused", "notes")}) for name, s in attacks]
    return json.loads(json.dumps(kept))


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
    require(not out.is_dir(), f"--out {out} is a directory: expected a file.")
    whole = merge(options.records, out, overwrite=options.overwrite)
    show(whole)
    say(f"wrote {out}, digest {digest(whole)[:16]}")


def show(*evaluations: Evaluation) -> None:
    """Print the accuracies, what each part of a composite attack left, and what to know before citing them."""
    data = evaluations[0].data
    part = f" (shard {data['shard']})" if "shard" in data else ""
    n = evaluations[0].results[0].n
    say(f"accuracy on {n} test samples of {data['name']}{part}, with 95 % intervals")
    say(accuracies(evaluations))
    for evaluation in evaluations:
        if table := stages(evaluation):
            say(table)
        if table := corrupted(evaluation):
            say(table)
    for caution in dict.fromkeys(c for e in evaluations for c in _rests_on(e)):
        say(f"note: {caution}")
    for warning in dict.fromkeys(w for e in evaluations for w in e.warnings):
        say(f"note: {warning}")
    for flag in dict.fromkeys(str(f) for e in evaluations for f in e.flags):
        say(f"flag: {flag}")


def _rests_on(evaluation: Evaluation) -> list[str]:
    """What to say beside accuracies under attack: that the attacks are weak, or the samples few."""
    _, *attacked = evaluation.results
    if not attacked:
        return []
    widest = max(attacked, key=lambda result: result.interval[1] - result.interval[0])
    return caveats(widest, [r for r in attacked if r.attack != WORST], evaluation.data.get("n_test"))


def _require_factory(options: Evaluate) -> None:
    target = options.target
    require(not Path(target).is_dir(), f"{target} is not a run directory: it has no run.json.")
    if Path(target).is_file():
        stem = Path(target).stem
        raise EquipoiseError(
            f"{target} is a source file: name the function in it that makes the model, as {stem}:FUNCTION."
            if Path(target).suffix == ".py"
            else f"{target} is a file, and a network is needed to load weights into: name the function that makes it, "
            f"as package.module:function --checkpoint {target}; a run of equipoise is evaluated by its folder."
        )
    require(
        ":" in target or target in nets.names(),
        f"there is no run directory {target}; expected one that `equipoise train` wrote, or a model as "
        "package.module:factory.",
    )
    require(options.data is not None, f"to evaluate {target} give a dataset with --data, such as mnist or my.npz.")


def _own_model(options: Evaluate, data: Dataset) -> "nn.Module | Predictive":
    model = nets.make(
        options.target, data.shape, len(data.classes), seed=options.seed, **net_options(options.net_option)
    )
    if options.checkpoint is not None:
        load_weights(as_predictive(model).module, options.checkpoint)
    as_predictive(model).module.eval()
    return model


def _data_of(options: Evaluate, recorded: Run | None) -> Dataset:
    """The dataset asked for, or else that of the run, found as its training found it and checked to be the same."""
    if options.data is not None or recorded is None:
        return load(str(options.data), options.data_root)
    name, root = _place_of_data(recorded)
    data = load(name, options.data_root or root)
    require(
        data.sha256 == recorded.data["sha256"],
        f"{name} is not the data that {options.target} was trained on (SHA-256 {data.sha256}, then "
        f"{recorded.data['sha256']}): give other data with --data if that is meant.",
    )
    return data


def _place_of_data(recorded: Run) -> tuple[str, Path | None]:
    """The name of a run's dataset or file, and where it was looked for, as typed when it was trained."""
    typed = recorded.provenance.options
    if typed.get("command") == "train" and isinstance(typed.get("data"), str):
        root = typed.get("data_root")
        return typed["data"], Path(root) if isinstance(root, str) else None
    words = shlex.split(recorded.provenance.command)  # of the first version, which stored the text alone
    options = parse(words[1:]) if words[:2] == ["equipoise", "train"] else None
    return (options.data, options.data_root) if isinstance(options, Train) else (recorded.data["name"], None)


def _require_fit(recorded: Run, data: Dataset) -> None:
    shape, classes = recorded.data["shape"], recorded.data["classes"]
    require(
        list(data.shape) == list(shape) and len(data.classes) == len(classes),
        f"{data.name} has {len(data.classes)} classes of inputs {data.shape}, "
        f"the network was trained for {len(classes)} of {tuple(shape)}.",
    )
