"""Does a larger network win back the clean accuracy that robust training costs? (U Fig 5)

LeNets of growing width, the number of filters and of units of the first linear layer multiplied (U App. F.2), trained
without perturbations and by UDP with eps .1. U goes from 2 to 12 times (`widths`); 12 times the width takes some 100
times as long.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from equipoise.attacks import pgd
from equipoise.losses.terms import Method
from equipoise.nets import build, count_parameters
from equipoise.reproduce.studies.design import Case, Options
from equipoise.reproduce.studies.images import AccuracyStudy, difference, direction, recipe, train
from equipoise.results.findings import Number, Picture, Series
from equipoise.training.methods import standard, udp

EPS = 0.1
"""Radius of UDP (U Fig 5) and of the attack."""

METHODS: Mapping[str, Method] = {"standard": standard(), "UDP": udp(EPS, 0.04, 5)}
"""The training methods; U does not give the steps of UDP; these reach twice the radius."""

LR, BATCH = 2e-3, 64
"""Learning rate and samples per step."""

_PAPER = "UDP's clean accuracy grows with the width, beyond that of standard training at width 1 (U Fig 5, Sec. 5.2)"


class Capacity(AccuracyStudy):
    """Clean and PGD accuracy of standard and UDP training against the width of a LeNet."""

    methods, parameter = tuple(METHODS), "width"
    attack, attack_name = pgd(EPS, 0.01, 20), "PGD-20"

    def __init__(self, options: Options) -> None:
        widths, self.steps, samples = ((1, 2), 20, 60) if options.quick else ((1, 2, 4), 160, 500)
        super().__init__(options, options.widths or widths, samples)
        self.first, self.last = (f"width {self.values[i]}" for i in (0, -1))

    def _network(self, case: Case) -> nn.Module:
        schedule = recipe(self.data, self.steps, case.seed, lr=LR, batch_size=BATCH)
        return train(METHODS[case.method], self.data, schedule, width=int(case.value))

    @cached_property
    def parameters(self) -> list[int]:
        """Number of parameters of each width."""
        shape, classes = self.data.shape, len(self.data.classes)
        return [count_parameters(build("lenet", shape, classes, width=width)) for width in self.values]

    @cached_property
    def differences(self) -> list[Number]:
        """What the verdict rests on: UDP at the largest width against UDP and standard training at the smallest, and
        both methods at one width.
        """
        first, last, narrow, wide = self.first, self.last, self.values[0], self.values[-1]
        udp_wide, udp_narrow = (self._at("UDP", "clean", width) for width in (wide, narrow))
        plain_wide, plain_narrow = (self._at("standard", "clean", width) for width in (wide, narrow))
        return [
            difference(f"clean accuracy, UDP at {last} minus UDP at {first}", udp_wide, udp_narrow, _PAPER),
            difference(f"clean accuracy, UDP at {last} minus standard at {first}", udp_wide, plain_narrow, _PAPER),
            difference(f"clean accuracy, UDP minus standard, both at {last}", udp_wide, plain_wide),
            difference(
                f"PGD-20 accuracy, UDP minus standard, both at {first}",
                self._at("UDP", "PGD-20", narrow),
                self._at("standard", "PGD-20", narrow),
                "standard training has about 0 % robust accuracy (U Fig 5)",
            ),
        ]

    def _measure(self) -> Iterator[Number]:
        yield from self._accuracies()
        yield from self.differences

    def _draw(self) -> list[Picture]:

        def reference(kind: str) -> Series:
            narrow = float(np.mean(self._curve("standard", kind), 0)[0])
            return Series(f"standard, {self.first}", np.full(len(self.values), narrow), dashed=True)

        axes = {"width": self.values, "thousand parameters": np.array(self.parameters) / 1000}
        caption = (
            f"Test accuracy on {self.data.name} of LeNets of growing width, trained without perturbations and by UDP "
            f"with eps {EPS:g}, and under PGD of the same radius (U Fig 5): means of {len(self.seeds)} seeds, bands "
            "from the smallest to the largest."
        )
        panels = [
            self._panel(f"{kind}, against {name}", kind, x, name, reference(kind))
            for kind in self.kinds
            for name, x in axes.items()
        ]
        return [Picture("capacity", caption, panels, columns=2)]

    def _training(self) -> dict[str, Any]:
        return {
            "widths": list(self.values), "parameters": self.parameters, "training steps": self.steps,
            "optimiser": f"Adam, learning rate {LR:g}, batches of {BATCH}",
            "methods": {name: str(method) for name, method in METHODS.items()},
        }  # fmt: skip

    def _conclude(self) -> str:
        grows, beyond, same, _ = map(direction, self.differences)
        clean = {name: np.mean(self._curve(name, "clean"), 0) for name in METHODS}
        facts = (
            f"UDP's clean accuracy goes from {clean['UDP'][0]:.1%} at {self.first} to {clean['UDP'][-1]:.1%} at "
            f"{self.last} ({grows}); standard training reaches {clean['standard'][0]:.1%} at {self.first} (UDP at "
            f"{self.last}: {beyond}) and {clean['standard'][-1]:.1%} at {self.last} (UDP: {same})"
        )
        match grows, beyond:
            case "higher", "higher":
                return f"As in the paper: {facts}."
            case "higher", _:
                return f"UDP gains with capacity, as in the paper, but does not pass standard training: {facts}."
            case _:
                return f"The paper's point is not seen: {facts}."


run = Capacity.run
