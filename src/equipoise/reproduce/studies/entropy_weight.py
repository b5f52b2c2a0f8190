"""How much uncertainty is good? The weight of the entropy term, with and without adversarial training (R Fig 3)."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from equipoise.attacks import pgd
from equipoise.attacks.steps import Gaussian
from equipoise.losses.objectives import Objective, regularised
from equipoise.losses.terms import Method
from equipoise.reproduce.studies.design import Case, Options
from equipoise.reproduce.studies.images import AccuracyStudy, difference, direction, recipe, train
from equipoise.results.findings import Number, Picture
from equipoise.training.methods import pat, standard

EPS = 0.1
"""Radius of the training and of the attack."""

METHODS: Mapping[str, Callable[[Objective], Method]] = {
    "EntM": lambda loss: standard(loss),
    "PAT-EntM": lambda loss: pat(EPS, 0.03, 7, loss=loss),
}
"""The training methods, as functions of the loss."""

_PAPER = "clean and robust accuracy rise together with lambda from 0.1 to 5 (R, Sec. 5.3 and Fig 3)"
_GAIN = ", lambda 2 minus lambda 0"


class EntropyWeight(AccuracyStudy):
    """Clean and PGD40 accuracy of EntM and PAT-EntM against the weight lambda of the entropy; PGD40 with the step size
    of R, Sec. 5.1.
    """

    methods, parameter, attack_name = tuple(METHODS), "lambda", "PGD-40"
    attack = pgd(EPS, EPS / 10, 40, start=Gaussian(0.005))

    def __init__(self, options: Options) -> None:
        weights, self.steps, samples = ((0, 2), 20, 60) if options.quick else ((0, 1, 2, 5, 10), 150, 300)
        super().__init__(options, weights, samples)

    def _network(self, case: Case) -> nn.Module:
        schedule = recipe(self.data, self.steps, case.seed, lr=2e-3, batch_size=64)
        return train(METHODS[case.method](regularised(float(case.value))), self.data, schedule)

    @cached_property
    def gains(self) -> list[Number]:
        """What each accuracy gains from lambda 0 to 2."""
        return [
            difference(f"{kind} accuracy, {name}{_GAIN}", self._at(name, kind, 2), self._at(name, kind, 0), _PAPER)
            for name in METHODS
            for kind in self.kinds
        ]

    def _measure(self) -> Iterator[Number]:
        yield from self._accuracies()
        yield from self.gains

    def _draw(self) -> list[Picture]:
        caption = (
            f"Test accuracy on {self.data.name} against the weight of the entropy, and under PGD40 within {EPS:g} "
            f"(R Fig 3): means of {len(self.seeds)} seeds, bands from the smallest to the largest."
        )
        panels = [self._panel(kind, kind, self.values, "lambda") for kind in self.kinds]
        return [Picture("entropy-weight", caption, panels, columns=2)]

    def _training(self) -> dict[str, Any]:
        methods = {name: str(make(regularised(2.0))) for name, make in METHODS.items()}
        return {"weights": list(self.values), "training steps": self.steps, "methods": methods}

    def _conclude(self) -> str:
        changes = [f"{n.name.removesuffix(_GAIN)} {n.mean:+.1%}, {direction(n)}" for n in self.gains]
        return f"From lambda 0 to 2: {'; '.join(changes)}."


run = EntropyWeight.run
