"""The verify command: does a record hold?"""

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from equipoise.attacks import fitted
from equipoise.cli.console import say
from equipoise.cli.evaluating import attacks_of, with_attacks
from equipoise.cli.following import to_report
from equipoise.cli.loaded_model import LoadedModel, load_model, norm_of
from equipoise.cli.parsing import parse
from equipoise.cli.recorded import from_data
from equipoise.cli.requests import Evaluate, Verify
from equipoise.core.errors import require
from equipoise.corruptions import chosen, load_published
from equipoise.evaluation import WORST, Corruptions, verify_record
from equipoise.evaluation.verification import read
from equipoise.models import as_predictive, validate_output
from equipoise.pretrained import EVALUATION, find
from equipoise.results.differences import with_new_names
from equipoise.results.records import Evaluation, digest

_SHOWN = 20  # mismatches of a record that are printed


def verify(options: Verify) -> None:
    """Check a record against its stored images, and say what came of it. Raises `EquipoiseError` if it is not true.

    Of a published model, images that are not there are no fault: the command that makes them again is named.
    """
    name, options = str(options.record), _of_published(options)
    record = read(options.record)
    asked = _request_of(record, options.record)
    loaded = load_model(_as_evaluated(options, record, asked))
    data, recorded = loaded.data, record.data
    require(
        data.sha256 == recorded["sha256"],
        f"{data.name} is not the data that {options.record} is about (SHA-256 {data.sha256}, recorded "
        f"{recorded['sha256']}): give it with --data.",
    )
    actual = {"split": "test", "n_test": len(data.test)} | ({} if options.data else {"name": data.name})
    require(
        recorded["n"] <= len(data.test) and all(recorded.get(key) == value for key, value in actual.items()),
        f"{options.record} does not hold: its data is {dict(recorded)}, but that SHA-256 is of {actual}.",
    )
    test = data.test.limit(recorded["n"])
    index = torch.tensor(record.index or range(len(test)))
    corruptions = None
    root = options.corruptions_root or (asked.corruptions_root if asked else None)
    if root is not None and record.corruptions:
        names = chosen([result.corruption for result in record.corruptions])
        corruptions = Corruptions(names, load_published(root, names)).of(data, recorded["n"])
    checked = verify_record(
        options.record, loaded.model, test.x.cpu()[index], test.y.cpu()[index], corruptions=corruptions
    )
    mismatches = [*checked.mismatches, *(_not_asked_for(asked, record, loaded) if asked else ())]
    for mismatch in mismatches[:_SHOWN]:
        say(f"not true: {mismatch}")
    require(not mismatches, f"{options.record} does not hold: {len(mismatches)} of its statements are not true.")
    if options.record.name == EVALUATION and checked.unchecked:
        say(
            f"{name} holds: its weights, and {checked.claims} claims inferred again, digest {digest(record)[:16]}. It "
            f"has no images for {checked.unchecked} successes of attacks; to attack again, and compare the digest: "
            f"{record.provenance.command}"
        )
        return
    require(
        checked.unchecked == 0,
        f"{options.record} has no images for {checked.unchecked} of its successes, which were not checked (its "
        f"{checked.claims} other claims hold): evaluate again with --images.",
    )
    say(
        f"{options.record} holds: {checked.claims} claims inferred again, digest {digest(record)[:16]}. That the other "
        "samples withstand the attacks cannot be seen from images, only by evaluating again."
    )
    to_report(record.target, options.record)


def _of_published(options: Verify) -> Verify:
    """The same for a published model, if one is given as its folder or by its name, with its record."""
    folder = find(options.record)
    if not folder.is_dir():
        return options
    require((folder / EVALUATION).is_file(), f"{folder} has no {EVALUATION}: give the file of a record.")
    return replace(options, record=folder / EVALUATION, target=options.target or str(options.record))


def _request_of(record: Evaluation, file: Path) -> Evaluate | None:
    """The options of `equipoise evaluate` that the record was made with; None if a call from Python made it.

    Records of the first version have the text of the command instead. Raises `EquipoiseError` for options that are no
    such ones.
    """
    if record.provenance.options.get("command") == "evaluate":
        return from_data(Evaluate, record.provenance.options, str(file))
    try:
        words = shlex.split(record.provenance.command)
        with redirect_stdout(StringIO()):
            request = parse(words[1:]) if words[:2] == ["equipoise", "evaluate"] else None
    except (ValueError, SystemExit):  # whatever is wrong with the text is not the user's mistake
        return None
    return request if isinstance(request, Evaluate) else None


def _as_evaluated(options: Verify, record: Evaluation, asked: Evaluate | None) -> Evaluate:
    """The options with which the record's model and data are found again."""
    before = asked or Evaluate(record.target, weights="last" if record.weights == "last" else "best")
    return replace(
        before,
        target=options.target or before.target,
        data=options.data or before.data,
        data_root=options.data_root or before.data_root,
        checkpoint=options.checkpoint or before.checkpoint,
        device="cpu",
    )


def _not_asked_for(asked: Evaluate, record: Evaluation, loaded: LoadedModel) -> list[str]:
    """What in the record is not what its own command asks for."""
    norm = norm_of(asked.norm, loaded.run)
    attacks = attacks_of(with_attacks(asked, loaded, norm), loaded, norm)
    classes = validate_output(as_predictive(loaded.model), loaded.data.test.x.cpu()).classes
    expected = [(name, fitted(name, attack, classes)[0].settings()) for name, attack in attacks]
    recorded = [(r.attack, r.settings) for r in record.results if r.attack not in ("clean", WORST)]
    if _comparable(expected) != _comparable(recorded):
        return ["its attacks, with their settings, are not those that its command asks for."]
    if [r.corruption for r in record.corruptions] != list(chosen(asked.corruptions) if asked.corruptions else ()):
        return ["its corruptions are not those that its command asks for."]
    if {proof.method for proof in record.certified} != ({asked.certified} - {None}):
        return ["its certificates are not those that its command asks for."]
    own = {"target": asked.target, "seed": asked.seed, "weights": loaded.weights}
    has = {"target": record.target, "seed": record.provenance.seed, "weights": record.weights}
    return [f"its command asks for {key} {own[key]}, it has {has[key]}." for key in own if own[key] != has[key]]


def _comparable(attacks: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """Names and settings as JSON has them, without what only the outcome tells."""
    settings = [(name, {k: v for k, v in s.items() if k not in ("refused", "notes")}) for name, s in attacks]
    return with_new_names(json.loads(json.dumps(settings)))
