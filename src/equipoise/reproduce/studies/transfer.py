"""Are features learned with uncertainty-driven perturbations more use on other data? (U Table 4)

A network is trained on a source dataset; its features, the inputs of its last layer, are then kept as they are, and a
linear classifier of a target dataset is trained on them. A network with a simplicity bias keeps only the few features
that its own classes need; one with more exhaustive features transfers better (U Sec. 5.3).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from equipoise.core.errors import require
from equipoise.data import Dataset, Split, load
from equipoise.losses.terms import Method
from equipoise.models import module_mode
from equipoise.nets import build, split
from equipoise.reproduce.studies import images
from equipoise.reproduce.studies.design import Case, Design, Options, percentage
from equipoise.reproduce.studies.images import difference, direction
from equipoise.results.findings import Lines, Number, Picture
from equipoise.training.methods import pgd_at, standard, trades, udp

NETS = {1: ("lenet", "fc2"), 3: ("preact-resnet18", "features")}
"""Network and its last layer before the classifier, by number of channels: the papers' (U Sec. 5, App. F.1)."""

METHODS: Mapping[int, Mapping[str, Method]] = {
    1: {
        "standard": standard(),
        "PGD": pgd_at(0.2, 0.04, 8),
        "TRADES": trades(0.2, 0.04, 8, beta=1.0),
        "UDP": udp(0.3, 0.04, 10),
    },
    3: {
        "standard": standard(),
        "PGD": pgd_at(0.02, 0.001, 20),
        "TRADES": trades(0.03, 0.001, 30),
        "UDP": udp(0.06, 0.002, 30),
    },
}
"""The training methods of the source network, by number of channels, each with its radius of U Tables 2 and 4. For
one channel the steps are larger and fewer than U's, of about the same reach."""

LR, BATCH = 2e-3, 64
"""Learning rate and samples per step."""

_PAPER = "CIFAR-10 to CIFAR-100: standard 42.5, PGD 42.6, TRADES 42.7, UDP 45.3 % at best robust accuracy (U Table 4)"


class Transfer(Design[tuple[float, list[float]]]):
    """Accuracy of linear classifiers of the target dataset on features learned on the source dataset."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.originals = source_and_target(options)
        self.source, self.target = map(images.images, self.originals)
        self.net, self.layer = NETS[self.source.shape[0]]
        methods = METHODS[self.source.shape[0]]
        self.methods = {name: methods[name] for name in ("standard", "UDP")} if options.quick else methods
        self.networks = ("untrained", *self.methods)
        self.steps = 40 if options.quick else 220
        self.sizes = sorted({max(len(self.target.classes), len(self.target.train) // part) for part in (16, 4, 1)})

    def _cases(self) -> list[Case]:
        return self.repeated((name, 0.0) for name in self.networks)

    def _train(self, case: Case) -> tuple[float, list[float]]:
        """Return the accuracy of a network on the source, and that of the linear classifiers on the target for each
        number of samples they are trained on.
        """
        source, seed = self.source, case.seed
        if case.method == "untrained":
            model = build(self.net, source.shape, len(source.classes), seed=seed)
        else:
            schedule = images.recipe(source, self.steps, seed, lr=LR, batch_size=BATCH)
            model = images.train(self.methods[case.method], source, schedule, net=self.net)
        encoder = split(model, self.layer)[0]
        probes = [linear_probe(encoder, self.target.limit(size, seed)) for size in self.sizes]
        return images.accuracy(model, source.test), probes

    @cached_property
    def transferred(self) -> dict[str, list[float]]:
        """The accuracies of the classifiers that were trained on the whole target, one per seed."""
        return {name: [probes[-1] for _, probes in self.over_seeds(name)] for name in self.networks}

    def _measure(self) -> Iterator[Number]:
        for name, values in self.transferred.items():
            yield percentage(f"transfer accuracy, features of {name}", values, "" if name == "untrained" else _PAPER)
        for name in self.methods:
            yield percentage(f"accuracy on the source itself, {name}", [own for own, _ in self.over_seeds(name)])
        for name, values in self.transferred.items():
            if name != "UDP":
                paper = "" if name == "untrained" else "UDP's is higher (U Table 4)"
                yield difference(f"transfer accuracy, UDP minus {name}", self.transferred["UDP"], values, paper)

    def _draw(self) -> list[Picture]:
        caption = (
            f"Accuracy on {self.target.name} of a linear classifier on the features of networks trained on "
            f"{self.source.name}, against the number of samples the classifier is trained on (U Table 4, there all of "
            f"them): means of {len(self.seeds)} seeds, bands from the smallest to the largest."
        )
        lines = [
            images.band(name, [probes for _, probes in self.over_seeds(name)], dashed=name == "untrained")
            for name in self.networks
        ]
        sizes, x_name = np.array(self.sizes, dtype=np.float64), f"training samples of {self.target.name}"
        panel = Lines("transfer accuracy", sizes, lines, x_name, "accuracy", log_x=True)
        return [Picture("transfer", caption, [panel], columns=1)]

    def _settings(self) -> dict[str, Any]:
        return {
            "source": images.described(self.source, self.originals[0].shape),
            "target": images.described(self.target, self.originals[1].shape),
            "net": self.net, "features": f"outputs of {self.layer}", "training steps": self.steps,
            "optimiser": f"Adam, learning rate {LR:g}, batches of {BATCH}",
            "methods": {name: str(method) for name, method in self.methods.items()},
            "linear classifier": "logistic regression with L2 penalty (C = 1) on standardised features, scikit-learn",
        }  # fmt: skip

    def _conclude(self) -> str:
        facts = ", ".join(f"{name} {np.mean(values):.1%}" for name, values in self.transferred.items())
        others = [name for name in self.methods if name != "UDP"]
        changes = {name: direction(self.numbers[f"transfer accuracy, UDP minus {name}"]) for name in others}
        if all(change == "higher" for change in changes.values()):
            return f"As in the paper, UDP's features transfer better: {facts}."
        compared = ", ".join(
            f"{change} {'from' if change == 'not told apart' else 'than with'} {name}"
            for name, change in changes.items()
        )
        return f"The paper's point is not seen in full: {facts}; with UDP {compared}."


def source_and_target(options: Options) -> tuple[Dataset, Dataset]:
    """Return the two datasets of `options.data`: `SOURCE,TARGET`, or one dataset, whose first and second half of
    classes they become; by default the digits 0-4 and 5-9.

    Raises `EquipoiseError` if the images of the two differ in shape, or one dataset has fewer than four classes.
    """
    names = [name.strip() for name in (options.data or "digits").split(",")]
    require(
        len(names) <= 2 and all(names),
        f"data = {options.data!r} does not say what to transfer: expected SOURCE,TARGET, such as mnist,fashion-mnist, "
        "or one dataset, whose classes are then divided.",
    )
    loaded = [load(name, options.data_root) for name in names]
    source, target = loaded if len(loaded) == 2 else halves(loaded[0])
    require(
        source.shape == target.shape,
        f"{source.name} has images of shape {source.shape} and {target.name} of {target.shape}: features transfer "
        "between images of one shape only; choose two such datasets, or bring them to one shape in an .npz file.",
    )
    return images.limited(source, options), images.limited(target, options)


def halves(data: Dataset) -> tuple[Dataset, Dataset]:
    """Return the first and the second half of the classes as datasets of their own, labelled from 0."""
    count = len(data.classes)
    require(
        count >= 4,
        f"{data.name} has {count} classes: to transfer within one dataset it needs at least 4, two to learn and two to "
        "transfer to; give two datasets as SOURCE,TARGET.",
    )
    middle = (count + 1) // 2
    return _classes(data, 0, middle), _classes(data, middle, count)


def _classes(data: Dataset, first: int, end: int) -> Dataset:
    def keep(split: Split) -> Split:
        samples = split[((split.y >= first) & (split.y < end)).nonzero().flatten()]
        return Split(samples.x, samples.y - first)

    names = data.classes[first:end]
    return replace(
        data, name=f"{data.name} {names[0]}-{names[-1]}", train=keep(data.train), test=keep(data.test), classes=names
    )


def linear_probe(encoder: nn.Module, data: Dataset) -> float:
    """Return the test accuracy of a logistic regression on the standardised features of the training split."""
    return float(np.mean(probed(encoder, data)))


def probed(encoder: nn.Module, data: Dataset) -> list[bool]:
    """Return whether that logistic regression classifies each test sample correctly."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features(encoder, data.train).numpy(), data.train.y.numpy())
    return (classifier.predict(features(encoder, data.test).numpy()) == data.test.y.numpy()).tolist()


@torch.no_grad()
def features(encoder: nn.Module, split: Split) -> Float[Tensor, "n d"]:
    """Return the encoder's outputs, in eval mode, flattened and on the CPU."""
    weight = next(encoder.parameters(), None)
    device = split.x.device if weight is None else weight.device
    with module_mode(encoder, "eval"):
        return torch.cat([encoder(x.to(device)).flatten(1).cpu() for x in split.x.split(512)])


run = Transfer.run
