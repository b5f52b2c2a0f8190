"""What does a perturbation do that is too large for one place and not for another? (U App. D.2, Fig 8; T Figs 1, 7)

Two classes nearly touch in one place and are far apart in another. PGD and UDP perturb the points of a fixed network,
PGD through the loss of the network, UDP through the entropy of ten networks; then networks are trained with an eps that
is too large for the narrow place, by PGD, UDP and TRADES.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import nn

from equipoise.data import Split
from equipoise.models import Ensemble
from equipoise.reproduce.studies import plane, toys
from equipoise.reproduce.studies.design import Case, Design, Options, percentage
from equipoise.reproduce.studies.images import accuracy
from equipoise.reproduce.studies.plane import AGREEMENT, METHODS, Trained, Training
from equipoise.results.findings import Number, Picture, Regions

ATTACK_EPS, ATTACK_STEP, ATTACK_STEPS = 0.8, 0.1, (1, 20)
TRAIN_EPS, TRAIN_STEP, TRAIN_STEPS = 0.4, 0.05, 15
"""Lengths in the papers' units; the step size and the number of steps of training are theirs (U Fig. 8)."""
MEMBERS = 10
_ROBUST = METHODS[1:]
_CROSS = {
    "PGD": "moves samples to the opposite side (U App. D.2)",
    "UDP": "does not cross the decision boundary (U App. D.2)",
}
_ACCURATE = {
    "UDP": "large eps does not deteriorate the clean accuracy (U App. D.2)",
    "TRADES": "misclassified in the top left corner (T Fig 7)",
}
_OSCILLATES = {"UDP": "oscillates less than PGD (U App. D.2)", "PGD": "oscillations (U Sec. 3)"}


class TwoDistance(Design[Trained]):
    """Where perturbations go, what training with them gives, and how often predictions change meanwhile.

    The value of a case is the member of the ensemble that it is, 0 of others than standard training.
    """

    repeats = (5, 2)

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.toy = toys.two_distance()
        self.view = self.toy.wider(ATTACK_EPS)  # holds every point that is moved
        self.sizes, self.rows, self.members = (plane.QUICK, 40, 2) if options.quick else (plane.Sizes(), 130, MEMBERS)

    def _cases(self) -> list[Case]:
        members = [("standard", float(member)) for member in range(self.members)]
        return self.repeated([*members, *((name, 0.0) for name in _ROBUST)])

    def _training(self, case: Case) -> Training:
        trained_by = plane.method(case.method, self.view, TRAIN_EPS, TRAIN_STEP, TRAIN_STEPS)
        seed, rows = case.seed + 10_000 * int(case.value), 0 if case.method == "standard" else self.rows
        return Training(self.view, trained_by, seed, self.sizes, case.seed, rows)

    def _train(self, case: Case) -> Trained:
        return plane.train(self._training(case))

    @cached_property
    def data(self) -> list[Split]:
        """The training points of each seed."""
        return [self._training(Case("standard", 0, seed)).data.train for seed in self.seeds]

    def _networks(self, name: str, member: int = 0) -> list[nn.Module]:
        return [trained.module for trained in self.over_seeds(name, member)]

    @cached_property
    def attacked(self) -> dict[str, list[nn.Module | Ensemble]]:
        """The models through which each attack perturbs points, one per seed."""
        members = zip(*(self._networks("standard", member) for member in range(self.members)), strict=True)
        return {"PGD": [*self._networks("standard")], "UDP": [Ensemble(networks) for networks in members]}

    @cached_property
    def moved(self) -> dict[tuple[str, int], list[np.ndarray]]:
        """Where each attack moves the points, by its number of steps, for each seed."""
        return {
            (name, steps): [
                plane.perturb(plane.attack(name, self.toy, ATTACK_EPS, ATTACK_STEP, steps), model, self.toy, data, seed)
                for model, data, seed in zip(models, self.data, self.seeds, strict=True)
            ]
            for name, models in self.attacked.items()
            for steps in ATTACK_STEPS
        }

    def _measure(self) -> Iterator[Number]:
        toy, last = self.toy, ATTACK_STEPS[-1]
        shares = {
            name: list(map(plane.across, models, repeat(toy), self.moved[name, last], self.data))
            for name, models in self.attacked.items()
        }
        for name, seeds in shares.items():
            title = f"points that {name} moves across the boundary of the model it climbs, {last} steps"
            yield percentage(title, [own for own, _ in seeds], _CROSS[name])
        for name, seeds in shares.items():
            title = f"points that {name} moves across the max-margin boundary, {last} steps"
            yield percentage(title, [max_margin for _, max_margin in seeds])
        seen = toy.seen(self.view.grid(self.rows))
        for name in _ROBUST:
            networks, called = self._networks(name), f"trained by {name}, eps {TRAIN_EPS:g}"
            accuracies = list(map(accuracy, networks, self.data))
            yield percentage(f"accuracy on the training points, {called}", accuracies, _ACCURATE.get(name, ""))
            accuracies = list(map(accuracy, networks, map(self._narrow, self.data)))
            yield percentage(f"accuracy in the narrow place, {called}", accuracies)
            yield percentage(f"{AGREEMENT}, {called}", [plane.agreement(network, toy) for network in networks])
            yield Number(
                f"changes of prediction during the training, mean over the window of the points, {called}",
                [float(trained.flips[seen].mean()) for trained in self.over_seeds(name) if trained.flips is not None],
                paper=_OSCILLATES.get(name, ""),
            )

    def _narrow(self, split: Split) -> Split:
        """The points of the place where the classes nearly touch."""
        return split[torch.from_numpy(np.flatnonzero(self.toy.from_unit(split.x)[:, 0] < 0))]

    def _draw(self) -> list[Picture]:
        trades = self._networks("TRADES")[0]
        panel = plane.regions(f"trained by TRADES, eps {TRAIN_EPS:g}", trades, self.toy, self.rows, self.data[0])
        perturbations = (
            f"PGD above, UDP below. (a, b) Points of a fixed classifier after 1 and {ATTACK_STEPS[1]} steps of "
            f"{ATTACK_STEP:g} with eps {ATTACK_EPS:g}, over the probability of the network and over the entropy of "
            f"{self.members} networks, each with the model that is climbed. (c) After training with eps "
            f"{TRAIN_EPS:g}, {TRAIN_STEPS} steps of {TRAIN_STEP:g}. (d) How often the prediction changed during "
            "that training (U Fig 8; T Fig 1)."
        )
        aligned = (
            "TRADES with weight 1 and the same eps: where the classes nearly touch it aligns the predictions of both "
            "(T Fig 7)."
        )
        rows = [*self._row("PGD"), *self._row("UDP")]
        return [Picture("perturbations", perturbations, rows, 4), Picture("trades", aligned, [panel], 1)]

    def _row(self, name: str) -> Iterator[Regions]:
        """The panels of an attack, of the first seed."""
        view, rows, data, model = self.view, self.rows, self.data[0], self.attacked[name][0]
        for steps, column in zip(ATTACK_STEPS, "ab", strict=True):
            title = f"({column}) {name}, {steps} step{'s' if steps > 1 else ''}"
            shown = plane.displaced(view, data, self.moved[name, steps][0])
            if name == "PGD":
                yield plane.regions(title, model, view, rows, data, truth=None, **shown)
            else:
                entropy = f"entropy of {self.members} networks, nats"
                yield plane.entropy_regions(title, entropy, model, view, rows, **shown)
        trained = self.over_seeds(name)[0]
        assert trained.flips is not None
        after = plane.regions(f"(c) trained by {name}, eps {TRAIN_EPS:g}", trained.module, view, rows, data)
        title, changes = f"(d) changes while training by {name}", trained.flips.astype(np.float32)
        yield from (after, Regions(title, changes, view.extent, "changes of prediction", None, truth=after.truth))

    def _settings(self) -> dict[str, Any]:
        return {
            **asdict(self.sizes), "members": self.members, "seeds": self.seeds,
            "narrow_gap": self.toy.narrow_gap("linf"), "wide_gap": self.toy.wide_gap("linf"),
            "attack": {"eps": ATTACK_EPS, "step": ATTACK_STEP, "steps": ATTACK_STEPS},
            "training": {"eps": TRAIN_EPS, "step": TRAIN_STEP, "steps": TRAIN_STEPS},
        }  # fmt: skip

    def _conclude(self) -> str:
        means = [number.mean for number in self.numbers.values()]
        accuracies = [f"{mean:.1%} by {name}" for name, mean in zip(_ROBUST, means[4::4], strict=True)]
        return (
            f"PGD moves {means[0]:.0%} of the points across the boundary of the network it climbs, UDP {means[1]:.0%} "
            "across that of its ensemble. Trained with an eps too large for the narrow place, the accuracy on the "
            f"training points is {', '.join(accuracies)}."
        )


run = TwoDistance.run
