"""Are features learned with uncertainty-driven perturbations more use on other data? (U Table 4)

A network is trained on a source dataset; its features, the inputs of its last layer, are then kept as they are, and a
linear classifier of a target dataset is trained on them. A network with a simplicity bias keeps only the few features
that its own classes need; one with more exhaustive features transfers better (U Sec. 5.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

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
from equipoise.reproduce.studies.images import (
    accuracy,
    band,
    described,
    difference,
    direction,
    images,
    limited,
    recipe,
    seeds,
    train,
)
from equipoise.reproduce.studies.options import Options, ReportProgress
from equipoise.reproduce.studies.processes import run_all, share
from equipoise.results.findings import Findings, Lines, Number, Picture
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
"""What trains the source network, by number of channels, each with its own radius: those of U Tables 2 and 4.
For one channel the steps are larger and fewer than U's, of about the same reach."""

LR, BATCH = 2e-3, 64
"""Learning rate and samples per step."""

_PAPER = "CIFAR-10 to CIFAR-100: standard 42.5, PGD 42.6, TRADES 42.7, UDP 45.3 % at best robust accuracy (U Table 4)"


def run(options: Options, tell: ReportProgress) -> Findings:
    """Accuracy of linear classifiers of the target dataset on features learned on the source dataset."""
    pair = source_and_target(options)
    source, target = (images(data) for data in pair)
    channels = source.shape[0]
    methods = METHODS[channels]
    if options.quick:
        methods = {name: methods[name] for name in ("standard", "UDP")}
    steps = 40 if options.quick else 220
    net, layer = NETS[channels]
    repeats = seeds(options)
    kinds = ("untrained", *methods)
    sizes = sorted({max(len(target.classes), len(target.train) // part) for part in (16, 4, 1)})
    curves: dict[str, list[list[float]]] = {name: [] for name in kinds}
    own: dict[str, list[float]] = {name: [] for name in methods}
    jobs = [(seed, name) for seed in repeats for name in kinds]
    work = partial(_transferred, source, target, steps, sizes)
    results = run_all(work, jobs, share(tell, f"network on {source.name}", len(jobs)), options.processes)
    for (_, name), (here, there) in zip(jobs, results, strict=True):
        if name in own:
            own[name].append(here)
        curves[name].append(there)
    transferred = {name: [curve[-1] for curve in rows] for name, rows in curves.items()}
    numbers = _numbers(transferred, own)
    return Findings(
        numbers=numbers,
        pictures=[_picture(source, target, curves, sizes)],
        settings={
            "source": described(source, pair[0].shape),
            "target": described(target, pair[1].shape),
            "net": net,
            "features": f"outputs of {layer}",
            "training steps": steps,
            "optimiser": f"Adam, learning rate {LR:g}, batches of {BATCH}",
            "methods": {name: str(method) for name, method in methods.items()},
            "linear classifier": "logistic regression with L2 penalty (C = 1) on standardised features, scikit-learn",
        },
        verdict=_verdict(transferred, {n.name: n for n in numbers}),
    )


def _transferred(
    source: Dataset, target: Dataset, steps: int, sizes: Sequence[int], job: tuple[int, str]
) -> tuple[float, list[float]]:
    """Of one network the accuracy on the source, and on the target by number of samples of the linear classifier."""
    seed, name = job
    net, layer = NETS[source.shape[0]]
    if name == "untrained":
        model = build(net, source.shape, len(source.classes), seed=seed)
    else:
        method = METHODS[source.shape[0]][name]
        model = train(method, source, recipe(source, steps, seed, lr=LR, batch_size=BATCH), net=net)
    encoder = split(model, layer)[0]
    return accuracy(model, source.test), [linear_probe(encoder, target.limit(n, seed)) for n in sizes]


def source_and_target(options: Options) -> tuple[Dataset, Dataset]:
    """The two datasets of `options.data`: `SOURCE,TARGET`, or one dataset whose first and second half of classes they
    become; by default the digits 0-4 and 5-9.

    Raises `EquipoiseError` if the images of the two differ in shape, or one dataset has fewer than four classes.
    """
    parts = [name.strip() for name in (options.data or "digits").split(",")]
    require(
        len(parts) <= 2 and all(parts),
        f"data = {options.data!r} does not say what to transfer: expected SOURCE,TARGET, such as mnist,fashion-mnist, "
        "or one dataset, whose classes are then divided.",
    )
    pair = halves(load(parts[0], options.data_root)) if len(parts) == 1 else None
    source, target = pair or (load(parts[0], options.data_root), load(parts[1], options.data_root))
    require(
        source.shape == target.shape,
        f"{source.name} has images of shape {source.shape} and {target.name} of {target.shape}: features transfer "
        "between images of one shape only; choose two such datasets, or bring them to one shape in an .npz file.",
    )
    return limited(source, options), limited(target, options)


def halves(data: Dataset) -> tuple[Dataset, Dataset]:
    """The first and the second half of the classes as datasets of their own, labelled from 0."""
    count = len(data.classes)
    require(
        count >= 4,
        f"{data.name} has {count} classes: to transfer within one dataset it needs at least 4, two to learn and two to "
        "transfer to; give two datasets as SOURCE,TARGET.",
    )
    middle = (count + 1) // 2
    return _classes(data, 0, middle), _classes(data, middle, count)


def _classes(data: Dataset, first: int, end: int) -> Dataset:
    def keep(part: Split) -> Split:
        rows = ((part.y >= first) & (part.y < end)).nonzero().flatten()
        return Split(part.x[rows], part.y[rows] - first)

    names = data.classes[first:end]
    return replace(
        data, name=f"{data.name} {names[0]}-{names[-1]}", train=keep(data.train), test=keep(data.test), classes=names
    )


def linear_probe(encoder: nn.Module, data: Dataset) -> float:
    """Test accuracy of a logistic regression on the encoder's standardised features, trained on the training split."""
    return float(np.mean(probed(encoder, data)))


def probed(encoder: nn.Module, data: Dataset) -> list[bool]:
    """Whether that logistic regression is right on each test sample."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features(encoder, data.train).numpy(), data.train.y.numpy())
    return (classifier.predict(features(encoder, data.test).numpy()) == data.test.y.numpy()).tolist()


@torch.no_grad()
def features(encoder: nn.Module, split: Split) -> Float[Tensor, "n d"]:
    """The encoder's outputs, in eval mode, as rows on the CPU."""
    weight = next(encoder.parameters(), None)
    device = split.x.device if weight is None else weight.device
    with module_mode(encoder, "eval"):
        return torch.cat([encoder(x.to(device)).flatten(1).cpu() for x in split.x.split(512)])


def _numbers(transferred: Mapping[str, Sequence[float]], own: Mapping[str, Sequence[float]]) -> list[Number]:
    return [
        *(
            Number(
                f"transfer accuracy, features of {name}",
                values,
                paper="" if name == "untrained" else _PAPER,
                percent=True,
            )
            for name, values in transferred.items()
        ),
        *(Number(f"accuracy on the source itself, {name}", values, percent=True) for name, values in own.items()),
        *(
            difference(
                f"transfer accuracy, UDP minus {name}",
                transferred["UDP"],
                transferred[name],
                paper="" if name == "untrained" else "UDP's is higher (U Table 4)",
            )
            for name in transferred
            if name != "UDP"
        ),
    ]


def _picture(
    source: Dataset, target: Dataset, curves: Mapping[str, Sequence[Sequence[float]]], sizes: Sequence[int]
) -> Picture:
    return Picture(
        "transfer",
        f"Accuracy on {target.name} of a linear classifier on the features of networks trained on {source.name}, "
        "against the number of samples the classifier is trained on (U Table 4, there all of them): means of "
        f"{len(curves['UDP'])} seeds, bands from the smallest to the largest.",
        [
            Lines(
                "transfer accuracy",
                np.array(sizes, dtype=np.float64),
                [band(name, rows, dashed=name == "untrained") for name, rows in curves.items()],
                f"training samples of {target.name}",
                "accuracy",
                log_x=True,
            )
        ],
        columns=1,
    )


def _verdict(transferred: Mapping[str, Sequence[float]], numbers: Mapping[str, Number]) -> str:
    mean = {name: float(np.mean(values)) for name, values in transferred.items()}
    facts = ", ".join(f"{name} {value:.1%}" for name, value in mean.items())
    others = [name for name in transferred if name not in ("UDP", "untrained")]
    found = {name: direction(numbers[f"transfer accuracy, UDP minus {name}"]) for name in others}
    compared = ", ".join(
        f"{how} than with {name}" if how != "not told apart" else f"{how} from {name}" for name, how in found.items()
    )
    if all(how == "higher" for how in found.values()):
        return f"As in the paper, UDP's features transfer better: {facts}."
    return f"The paper's point is not seen in full: {facts}; with UDP {compared}."
