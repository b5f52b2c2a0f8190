"""Train, evaluate and install the models that come with equipoise, and write their page, docs/models.md.

Of every model of the table `MODELS` that is not installed: `equipoise train`, then `equipoise evaluate` under
AutoAttack on all test samples, then `equipoise push` into the package, then `equipoise verify`. Whatever is finished is
kept in `--work`, and the same command continues.

python benchmarks/models.py --only digits
python benchmarks/models.py --only mnist fashion-mnist --data-root DIR
python benchmarks/models.py --page --data-root DIR    # verify all that are installed, and write the page
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a checkout that is not installed

from equipoise.cli import main as equipoise
from equipoise.core.tables import as_markdown
from equipoise.pretrained import PublishedModel, find, names, read
from equipoise.results.records import Run, digest, load

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = ROOT / "src/equipoise/pretrained", ROOT / "docs/models.md"


@dataclass(frozen=True)
class Declared:
    """How a model is made."""

    method: str
    """The method and its options, as words of `equipoise train`."""
    setting: str
    """The other options."""
    eps: float
    """Radius of AutoAttack, in Linf."""

    def words(self, data: str) -> list[str]:
        """The words of `equipoise train`, from the method on."""
        return f"{self.method} --data {data} {self.setting} --seed 0 --evaluate-examples 0".split()


_DIGITS = "--net mlp --epochs 100 --batch-size 64"
_LENET = "--net lenet --epochs 100 --batch-size 256 --lr 1e-3 --validation 1/12 --valid-examples 1000 --valid-steps 5"
"""Of U (App. F.1.1) and T; validation only says when an alarm is due, the weights are those of the last epoch."""
_MLP = _LENET.replace("lenet", "mlp")
_R = (
    "--net lenet --epochs 40 --batch-size 128 --optimizer sgd --momentum 0.9 --no-nesterov --lr 0.1 "
    "--weight-decay 1e-4 --schedule multistep --milestones 0.5 --valid-steps 5"
)
"""Of R (Table 5) on MNIST."""
_F = "--net lenet --epochs 30 --batch-size 128 --lr 1e-3 --schedule multistep --validation 0.01 --valid-steps 5"
"""Of F (Sec. 7)."""
_SPEEDRUN = (
    "--net lenet --epochs 12 --batch-size 64 --lr 6e-3 --schedule triangular --lr-peak 0.3 --ema 0.999 "
    "--validation 1/12 --valid-steps 5"
)
"""Of benchmarks/speedrun.py."""
_TRADES_U = "--beta 1 --divergence soft-cross-entropy"

MODELS = {
    "digits/standard": Declared("standard", _DIGITS, 0.1),
    "digits/pgd-0.15": Declared("pgd --eps 0.15 --steps 10", _DIGITS, 0.1),
    "digits/trades-0.15": Declared("trades --eps 0.15 --steps 10", _DIGITS, 0.1),
    "digits/udp-0.15": Declared("udp --eps 0.15 --steps 10", _DIGITS, 0.1),
    "digits/udpr-0.25": Declared("udpr --eps 0.25 --steps 10", _DIGITS, 0.1),
    "digits/ibp-0.1": Declared("ibp --eps 0.1", _DIGITS, 0.1),
    "mnist/standard": Declared("standard", _LENET, 0.1),
    "mnist/pgd-0.2": Declared("pgd --eps 0.2 --step-size 0.01 --steps 20", _LENET, 0.1),
    "mnist/trades-0.2": Declared(f"trades --eps 0.2 --step-size 0.01 --steps 20 {_TRADES_U}", _LENET, 0.1),
    "mnist/udp-0.4": Declared("udp --eps 0.4 --step-size 0.02 --steps 20", _LENET, 0.1),
    "mnist/pat-entm": Declared("pat-entm --eps 48/255 --step-size 6/255 --steps 10", _R, 0.1),
    "mnist/hein": Declared("hein --weight 0.01", _F, 0.1),
    "mnist/r2": Declared("r2 --weight 0.1", _F, 0.1),
    "mnist/ibp-0.1": Declared("ibp --eps 0.1", _LENET, 0.1),
    "mnist/mlp-standard": Declared("standard", _MLP, 0.1),
    "mnist/mlp-pgd-0.2": Declared("pgd --eps 0.2 --step-size 0.01 --steps 20", _MLP, 0.1),
    "mnist/mlp-uta-0.2": Declared("uta --eps 0.2 --step-size 0.01 --steps 20", _MLP, 0.1),
    "fashion-mnist/standard": Declared("standard", _LENET, 0.1),
    "fashion-mnist/pgd-0.2": Declared("pgd --eps 0.2 --step-size 0.015 --steps 20", _LENET, 0.1),
    "fashion-mnist/trades-0.2": Declared(f"trades --eps 0.2 --step-size 0.015 --steps 20 {_TRADES_U}", _LENET, 0.1),
    "fashion-mnist/udpr-0.5": Declared("udpr --eps 0.5 --step-size 0.025 --steps 20", _LENET, 0.1),
    "fashion-mnist/udp-0.3": Declared("udp --eps 0.3 --step-size 0.015 --steps 25", _LENET, 0.1),
    "fashion-mnist/udp-0.5": Declared("udp --eps 0.5 --step-size 0.025 --steps 20", _LENET, 0.1),
    "fashion-mnist/uta-0.2": Declared("uta --eps 0.2 --step-size 0.01 --steps 20", _LENET, 0.1),
    "fashion-mnist/recipe": Declared("udp --eps 0.3 --step-size 0.04 --steps 9", _SPEEDRUN, 0.1),
}
"""The settings of U Table 2, T Table 1, R and F (`equipoise.reproduce.papers`), but all on the same networks."""

HEAD = """# Models

Trained networks that come with equipoise, ordered by their accuracy under AutoAttack on all test samples. Every row was
verified as `equipoise verify NAME` does: the SHA-256 of the weights, and every clean prediction, again; and that the
record contradicts itself nowhere. Two models whose intervals overlap are not told apart by their order.

```
equipoise models                                     # this table, in a terminal
equipoise evaluate digits/udp-0.15 --attacks autoattack --eps 0.1
equipoise train udp --eps 0.2 --init digits/udp-0.15 # start from its weights
equipoise push runs/udp --out my-model               # your own run, in the same form
```

```python
net, record = eq.load("digits/udp-0.15")
```

The names are DATA/METHOD-EPS, of a LeNet; those of perceptrons are DATA/mlp-METHOD-EPS, and all on digits. The weights
are those of the last epoch; on MNIST and Fashion-MNIST the settings are those of the papers, for as many epochs.
`benchmarks/models.py` trains and evaluates them and writes this page; the card of each lies beside its weights, in
`src/equipoise/pretrained`.
"""


def build(name: str, work: Path, root: Sequence[str]) -> None:
    """Train, evaluate and install a model, from where this was interrupted."""
    declared, data, run = MODELS[name], name.partition("/")[0], work / name
    record = run / "autoattack.json"
    if not _is_finished(run):
        begun = ["--resume"] if (run / "run.json").exists() else []
        _equipoise(["train", *declared.words(data), *root, "--out", str(run), *begun])
    attack = ["--attacks", "autoattack", "--eps", f"{declared.eps:g}", "--norm", "linf", "--examples", "0"]
    if not record.exists():
        options = [*attack, "--no-images", *root, "--resume", "--out", str(record)]
        _equipoise(["evaluate", str(run), "--weights", "last", *options])
    options = ["--weights", "last", "--evaluation", str(record), "--name", name, "--license", "mit"]
    _equipoise(["push", str(run), *options, "--out", str(PACKAGE / name)])
    _equipoise(["verify", name, *root])
    shutil.rmtree(run)


def _is_finished(run: Path) -> bool:
    record = load(run / "run.json") if (run / "run.json").exists() else None
    return isinstance(record, Run) and record.status == "finished"


def _equipoise(words: Sequence[str]) -> None:
    print(f"$ equipoise {' '.join(words)}", flush=True)
    if code := equipoise(words):
        sys.exit(code)


def page() -> str:
    """Return the page of all installed models."""
    sections = [_section(data, list(members)) for data, members in groupby(names(), lambda name: name.split("/")[0])]
    return "\n".join([HEAD, *sections])


def _section(data: str, members: Sequence[str]) -> str:
    models = sorted(map(read, members), key=lambda model: -model.attacked[-1].accuracy)
    attack = models[0].attacked[-1]
    header = ("name", "network", "parameters", "method", "clean", f"AutoAttack, {attack.norm} {attack.eps:g}", "digest")
    about = models[0].evaluation.data
    samples = f"n = {attack.n:,} test samples, SHA-256 of the data `{about['sha256'][:16]}`; 95 % intervals."
    return f"## {data}\n\n{samples}\n\n{as_markdown(header, [_row(model) for model in models])}\n"


def _row(model: PublishedModel) -> tuple[str, ...]:
    cells = (f"{100 * one.accuracy:.1f} ({100 * one.interval[0]:.1f} to {100 * one.interval[1]:.1f})" for one in
             (model.clean, model.attacked[-1]))  # fmt: skip
    net = model.run.net
    return (f"`{model.name}`", net["name"], f"{net['parameters']:,}", model.method, *cells,
            f"`{digest(model.evaluation)[:16]}`")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models, or datasets such as digits; by default all")
    parser.add_argument("--data-root", help="folder of the datasets")
    parser.add_argument("--work", type=Path, default=Path("runs/models"), help="folder of unfinished work")
    parser.add_argument("--list", action="store_true", help="list what would be made, and do nothing")
    parser.add_argument("--page", action="store_true", help="verify what is installed and write the page, nothing else")
    options = parser.parse_args()
    chosen = [name for name in MODELS if not options.only or {name, name.split("/")[0]} & set(options.only)]
    root = ["--data-root", options.data_root] if options.data_root else []
    missing = [name for name in chosen if not (find(name) / "run.json").exists()]
    if options.list:
        print("\n".join(f"{name}: {'to do' if name in missing else 'installed'}" for name in chosen))
        return
    for name in [] if options.page else missing:
        build(name, options.work, root)
    for name in names():
        _equipoise(["verify", name, *root])
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
