"""What a report cannot be made from, each with one sentence."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from equipoise.core.errors import EquipoiseError
from equipoise.report import report

pytestmark = pytest.mark.unchecked


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def spoil(kind: str, run: Path) -> list[Path]:
    """Break one thing about a run directory; the paths to report on."""
    evaluation = run / "evaluation.json"
    match kind:
        case "nothing":
            return []
        case "missing":
            return [run / "nowhere"]
        case "no run":
            return [run.parent]
        case "run.json":
            return [run / "run.json"]
        case "text":
            (run / "run.json").write_text("hello")
        case "swapped":
            (run / "run.json").write_bytes(evaluation.read_bytes())
        case "method":
            edit(run / "run.json", method=3)
        case "seconds":
            edit(run / "run.json", seconds="long")
        case "cut evaluation":
            evaluation.write_bytes(evaluation.read_bytes()[:100])
        case "result":
            edit(evaluation, results=[1])
        case "empty result" | "radius":
            results = json.loads(evaluation.read_bytes())["results"]
            results[0].update({"correct": []} if kind == "empty result" else {"eps": "8/255"})
            edit(evaluation, results=results)
        case "target":
            edit(evaluation, target=None)
        case "metrics":
            (run / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch"\n{"epoch": 3}\n')
        case "samples":
            (run / "samples.npz").write_bytes((run / "samples.npz").read_bytes()[:200])
        case "shapes":
            np.savez(
                run / "samples.npz",
                clean=np.zeros((2, 1, 8, 8)),
                clean_prediction=np.zeros(3, int),
                labels=np.zeros(2, int),
            )
    return [run]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "needs at least one run directory, evaluation or score, got none"),
        ("missing", "nowhere does not exist; expected a run directory, an evaluation or a score"),
        ("no run", "runs is not a run directory: it has no run.json"),
        ("run.json", "run.json is a training run, expected an evaluation; give its directory instead"),
        ("text", "run.json is not JSON"),
        ("swapped", "run.json is no training run, expected one"),
        ("method", "run.json is damaged: method: expected table"),
        ("seconds", "run.json is damaged: seconds: expected number"),
        ("cut evaluation", "evaluation.json is not JSON"),
        ("result", "evaluation.json is damaged: results"),
        ("empty result", r"evaluation.json is damaged: results\[0\]: clean covers no samples"),
        ("radius", r"evaluation.json is damaged: results\[0\].eps: expected number"),
        ("target", "evaluation.json is damaged: target: expected text"),
        ("metrics", "line 2 of .*metrics.jsonl is not a JSON object"),
        ("samples", "cannot read .*samples.npz: it is not a whole .npz file"),
        ("shapes", "samples.npz does not hold images: expected clean, udp and pgd of one shape"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(kind, message, run_directory, tmp_path):
    paths = spoil(kind, run_directory("udp", {("clean", "linf", 0.0): 190}))
    out = tmp_path / "r.html"
    with pytest.raises(EquipoiseError, match=message) as caught:
        report(paths, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_an_unwritable_place_is_refused(three_runs, tmp_path):
    with pytest.raises(EquipoiseError, match=r"cannot write .*choose another place with --out"):
        report(three_runs[:1], three_runs[0] / "run.json" / "r.html")
    with pytest.raises(EquipoiseError, match=r"cannot write .*: Is a directory"):
        report(three_runs[:1], tmp_path)


def test_without_matplotlib_the_extra_is_named(three_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EquipoiseError, match=r"need matplotlib.*pip install 'equipoise\[report\]'"):
        report(three_runs, tmp_path / "r.html")
