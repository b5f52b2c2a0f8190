"""Interoperability: results in the format of RobustBench, attacks as AttackBench calls them, and robust accuracy during
training with Lightning.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import islice
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from equipoise.attacks import Attack
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.rng import Streams
from equipoise.core.types import Predict, Prediction, Weights
from equipoise.evaluation import WORST, Suite, evaluate_batches
from equipoise.results.records import Evaluation

_THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}


def robustbench(evaluation: Evaluation) -> dict[str, Any]:
    """Return the result in the fields of a RobustBench entry: accuracies in percent, the threat model, and the attacks;
    `autoattack_acc` only if AutoAttack's standard sequence, or one that contains it, ran.

    It is about the ball of the smallest radius in the norm of the first attack. Raises `EquipoiseError` if there was no
    attack.
    """
    attacked = [r for r in evaluation.results if r.attack != "clean"]
    if not attacked:
        raise EquipoiseError("a RobustBench entry needs an attack: evaluate with --attacks autoattack.")
    norm = attacked[0].norm
    eps = min(r.eps for r in attacked if r.norm == norm)
    results = [r for r in attacked if (r.norm, r.eps) == (norm, eps)]
    worst = next((r for r in results if r.attack == WORST), results[0])
    full = [r for r in results if r.attack in ("autoattack", "autoattack-plus", "cascade")]
    entry = {
        "name": evaluation.target,
        "dataset": evaluation.data["name"],
        "threat_model": _THREATS[worst.norm],
        "eps": worst.eps,
        "n_examples": worst.n,
        "clean_acc": f"{100 * evaluation.results[0].accuracy:.2f}",
        "external": f"{100 * worst.accuracy:.2f}",
        "attacks": [r.attack for r in results if r.attack != WORST],
        "unreliable": bool(evaluation.flags),
        "seed": evaluation.provenance.seed,
        "weights_sha256": evaluation.model.get("sha256"),
    }
    return entry | ({"autoattack_acc": f"{100 * min(r.accuracy for r in full):.2f}"} if full else {})


class _Queried:
    """A model that is called itself, not as a copy, so that it sees every query. It has no `__dict__`, by which the
    copy of a model that an attack makes would find it.
    """

    __slots__ = ("model",)

    def __init__(self, model: nn.Module) -> None:
        self.model = model


class _Counted:
    """A predictive whose calls reach the given model, which counts and limits them."""

    def __init__(self, model: nn.Module) -> None:
        self.module = nn.Module()  # without parameters: those of the model are not replaced by constants
        self._queried = _Queried(model)

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """Return the model as a function to a prediction."""
        return lambda x: Prediction(self._queried.model(x)[None])


def attackbench(attack: Attack, seed: int = 0) -> Callable[..., Tensor]:
    """Return an attack as AttackBench (Cina et al. 2025) and adversarial-library call theirs.

    That is `attack(model, inputs, labels, targets=None, targeted=False) -> adversarial inputs`. Other keywords are
    refused by Python. Every query goes through `model` itself, a network that returns logits, in eval mode, so that it
    can count and limit them; those that the attack needs to check its inputs are among them. Where no adversarial input
    was found the attack's last point is returned. Raises `EquipoiseError` as the attack does, and for `targeted`
    without targets.
    """

    def run(
        model: nn.Module, inputs: Tensor, labels: Tensor, targets: Tensor | None = None, targeted: bool = False
    ) -> Tensor:
        require(targets is not None or not targeted, "targeted = True needs targets: give the classes to reach.")
        options: dict[str, Any] = {"target": targets} if targeted else {}
        return attack(_Counted(model), inputs, labels, seed=seed, **options).x

    return run


def lightning_callback(
    attacks: Suite, *, every: int = 1, batches: int = 1, seed: int = 0, name: str = "robust_accuracy"
) -> Any:
    """Return a callback for a Lightning `Trainer` that logs accuracy under `attacks` after every `every`-th epoch.

    The accuracies on the first `batches` batches `(x, y)` of the (first) validation loader, by `evaluate_batches`, are
    logged as `name/clean`, `name/attack/eps`, and `name/worst case/eps` if several attacks share a ball. The
    LightningModule itself is attacked, so its `forward` must return logits. Modes and random states are restored, so
    that training is not affected. It runs at the end of the training epoch, as Lightning validates without gradients.
    Raises `EquipoiseError` if Lightning is not installed or a number is unusable, and in training if there is no
    validation loader or its batches cannot be attacked.
    """
    require(every >= 1, f"every = {every}: expected a number of epochs >= 1.")
    require(batches >= 1, f"batches = {batches}: expected a number of batches >= 1.")
    keys = [f"{attack_name}/{attack.geometry.eps:g}" for attack_name, attack in attacks]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    require(twice is None, f"two attacks would be logged as {name}/{twice}: give one of them another name.")
    lightning = _lightning()

    class RobustAccuracy(lightning.Callback):
        """Logs accuracy under attacks."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """Evaluate and log."""
            if (trainer.current_epoch + 1) % every:
                return
            loader = trainer.val_dataloaders
            if loader is None:
                raise EquipoiseError("robust accuracy is measured on validation data: give the trainer a loader of it.")
            if isinstance(loader, Sequence | Mapping):
                loader = next(iter(loader.values() if isinstance(loader, Mapping) else loader))
            with import_module(f"{lightning.__name__}.utilities.seed").isolate_rng():
                results = evaluate_batches(pl_module, islice(loader, batches), attacks, seed=seed)
            values = {
                f"{name}/clean" if r.attack == "clean" else f"{name}/{r.attack}/{r.eps:g}": r.accuracy for r in results
            }
            pl_module.log_dict(values, batch_size=results[0].n, sync_dist=True)

    return RobustAccuracy()


def _lightning() -> ModuleType:
    """Lightning under the name by which it is installed; if by both, under the one that is already imported."""
    for package in sorted(("pytorch_lightning", "lightning.pytorch"), key=lambda package: package not in sys.modules):
        try:
            return import_module(package)
        except ModuleNotFoundError:
            continue
    raise EquipoiseError("the callback needs Lightning, which is not installed: pip install pytorch-lightning.")
