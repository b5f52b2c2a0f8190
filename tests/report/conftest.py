import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.results.records import AttackRecord, Evaluation, Provenance, Run, save

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
LOW_CONTRAST = """
() => {
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const luminance = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const background = node => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const colour = rgba(node.closest('svg') ? style.fill : style.color);
    const [a, b] = [colour, background(node)].map(luminance).sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    seen += 1;
    if (ratio < 4.5) found.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return [seen, found];
}
"""

PROVENANCE = Provenance(
    "equipoise train udp --seed 7",
    7,
    {"equipoise": "0.1.0", "torch": "2.13.0"},
    "0123abc",
    "a processor",
    2,
    "2025-01-02T03:04:05Z",
)
N = 200


def outcome(right: int, n: int = N) -> list[bool]:
    """`right` correct answers, then wrong ones."""
    return [i < right for i in range(n)]


def make_evaluation(counts: Mapping[tuple[str, str, float], int], n: int = N, **changes: Any) -> Evaluation:
    """An evaluation with `counts[attack, norm, eps]` correct answers of `n`."""
    results = [AttackRecord(*key, correct=outcome(right, n), settings={"steps": 20}) for key, right in counts.items()]
    data = {"name": "digits", "sha256": "ab" * 32, "split": "test", "n": n}
    return Evaluation(**{"target": "some/model", "data": data, "results": results, "provenance": PROVENANCE, **changes})


def make_run(directory: Path, name: str, counts: Mapping[tuple[str, str, float], int] | None, **changes: Any) -> Path:
    """A run directory as a training leaves it, with one evaluation unless `counts` is None."""
    method = {"name": name, "sum": "ce at the perturbed input", "eps": 0.1, "norm": "linf", "steps": 10}
    data = {"name": "digits", "sha256": "ab" * 32, "classes": ["zero", "one", "two"], "shape": [1, 8, 8]}
    fields = {
        "method": method,
        "recipe": {"optimiser": "adam", "epochs": 3},
        "net": {"name": "mlp", "parameters": 1234},
        "data": data,
        "provenance": PROVENANCE,
        "status": "finished",
        "best": {"epoch": 2},
        "seconds": 75.0,
    }
    save(directory / "run.json", Run(**{**fields, **changes}))
    lines = [
        {"epoch": e, "train_loss": 2.0 / e, "valid_clean": 0.8 + 0.05 * e, "valid_fgsm": 0.5, "valid_pgd": 0.1 * e}
        for e in (1, 2, 3)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if counts is not None:
        save(directory / "evaluation.json", make_evaluation(counts, target=str(directory)))
    clean = np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(3, 1, 8, 8)
    moved = (clean + 0.1).clip(0, 1)
    labels = np.array([0, 1, 2])
    wrong = np.array([0, 2, 2])
    arrays = {"clean": clean, "udp": moved, "pgd": (clean - 0.1).clip(0, 1), "labels": labels}
    np.savez(directory / "samples.npz", **arrays, clean_prediction=labels, udp_prediction=labels, pgd_prediction=wrong)
    return directory


@pytest.fixture
def evaluation() -> Callable[..., Evaluation]:
    return make_evaluation


@pytest.fixture
def run_directory(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run directory of a given name under `tmp_path/runs`."""

    def make(name: str, counts: Mapping[tuple[str, str, float], int] | None, **changes: Any) -> Path:
        return make_run(tmp_path / "runs" / name, changes.pop("method_name", name), counts, **changes)

    return make


@pytest.fixture
def three_runs(run_directory: Callable[..., Path]) -> list[Path]:
    """Three methods; at 0.1 the second is best, the third within its interval, the first far below."""
    at = [
        ("clean", "linf", 0.0),
        ("fgsm", "linf", 0.1),
        ("pgd", "linf", 0.1),
        ("worst case", "linf", 0.1),
        ("pgd", "linf", 0.2),
    ]
    table = {"standard": (196, 90, 40, 38, 2), "pgd-at": (190, 170, 160, 158, 90), "udp": (192, 168, 157, 155, 60)}
    return [run_directory(name, dict(zip(at, counts, strict=True))) for name, counts in table.items()]


@pytest.fixture
def browser():
    """A browser without a window; what needs one is skipped where chromium is not installed."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def low_contrast() -> str:
    """A script that returns how many texts a page shows, and those with a contrast below 4.5."""
    return LOW_CONTRAST
