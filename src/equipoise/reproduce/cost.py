"""How long a task will take here, about: passes through its network, times what one pass costs on this machine.

A pass is one sample forward and backward. Estimates serve to plan and to show the time left; a sweep corrects them by
what its finished tasks took.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from json import dumps, loads
from typing import Any

import torch
from torch import nn

from equipoise.attacks import FAB, AttackLike, RandomSearch, Square
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.attack import Composite, Wrapped
from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.attacks.inputs import AT_ONCE
from equipoise.attacks.spaces import Latent
from equipoise.attacks.steps import Fixed
from equipoise.core.errors import EquipoiseError
from equipoise.core.rng import Streams
from equipoise.data import Dataset
from equipoise.evaluation import suite
from equipoise.generators import GeneratedMargin, Manifold
from equipoise.losses.objectives import entropy
from equipoise.models import as_predictive
from equipoise.reproduce.stand_in import KINDS
from equipoise.reproduce.tasks import SIZES, DataManifold, Evaluated, Measured, Net, StudyTask, Task, Training
from equipoise.training import build_model
from equipoise.training.penalties import CrossLipschitz

_FORWARD = 1 / 3  # of a pass: the backward one costs about twice as much
_SURVIVE = 0.5  # share of the samples that use up an attack's budget; the others fall early
_BEHIND = 0.05  # of a pass: the layers behind a latent space, which are the last ones
_MEASURED = 200  # passes per sample and network of a measurement: a guess
_AUTO_ENCODER = 10  # passes of a LeNet that one of an auto-encoder costs
_START = 1.0  # seconds to read data and build networks

STUDIES: Mapping[str, float] = {
    "theorem": 26,
    "opposite-class": 4,
    "narrow-corridor": 233,
    "lms5": 130,
    "two-distance": 141,
    "due": 86,
    "appearance": 37,
    "transfer": 49,
    "overfitting": 54,
    "capacity": 47,
    "entropy-weight": 120,
}
"""Seconds of each study with its own number of seeds, as measured on two cores of an x86 server; that of entropy-weight
is a guess."""
_QUICK = 5.0  # seconds of the quick form

Rates = Mapping[str, float]
"""Seconds of one sample's pass through a network, by what the network is."""


@dataclass(frozen=True)
class Work:
    """How long tasks take in all."""

    seconds: float
    """On one worker."""
    chain: float
    """Of those that have to wait for each other: with any number of workers."""

    def by(self, workers: int) -> float:
        """Seconds with so many workers."""
        return max(self.seconds / workers, self.chain)


def total(tasks: Iterable[Task], workers: int = 1, sizes: Mapping[str, int] = SIZES) -> float:
    """Estimated seconds of all tasks together with so many workers: their sum, shared, but at least the longest chain.

    Tasks come after those they need.
    """
    return work(tasks, sizes).by(workers)


def work(tasks: Iterable[Task], sizes: Mapping[str, int] = SIZES, rates: Rates | None = None) -> Work:
    """Estimated seconds of all tasks together, which come after those they need; `rates` as in `seconds`."""
    spent, chain = 0.0, 0.0
    ends: dict[str, float] = {}
    for task in tasks:
        own = seconds(task, sizes, rates)
        end = own + max((ends.get(repr(one), 0.0) for one in task.needs), default=0.0)
        ends[repr(task)] = end
        spent, chain = spent + own, max(chain, end)
    return Work(spent, chain)


def seconds(task: Task, sizes: Mapping[str, int] = SIZES, rates: Rates | None = None) -> float:
    """Estimated seconds of a task on one core of this machine, or on its GPU. `sizes` are the datasets' numbers of
    training samples, `rates` seconds per pass that were measured elsewhere; others are measured here.
    """
    if isinstance(task, StudyTask):
        return _QUICK if task.quick else STUDIES.get(task.name, 120.0)
    return _START + passes(task, sizes) * per_pass(_net(task), task.data, rates)


def _net(task: Task) -> Net:
    """The network whose passes count."""
    match task:
        case Training():
            return task.net
        case Evaluated():
            return task.of.net
        case Measured() if task.of:
            return task.of[0].net
    return Net("lenet")


def passes(task: Task, sizes: Mapping[str, int] = SIZES) -> float:
    """Passes through the network: samples times forward and backward passes of each."""
    match task:
        case Training():
            return _of_training(task, _held_in(task, sizes))
        case DataManifold():
            return task.recipe.epochs * _held_in(task, sizes) * _AUTO_ENCODER
        case Evaluated():
            own = suite(
                task.attacks, task.eps, task.norm, steps=task.steps, step_size=task.step_size, restarts=task.restarts
            )
            climbs = sum(_of_attack(attack) for _, attack in own) * max(len(task.proxies), 1)
            return task.examples * (_FORWARD + _SURVIVE * climbs)
        case Measured():
            return task.examples * _MEASURED * len(task.of)
    return 0.0


def _held_in(task: Training | DataManifold, sizes: Mapping[str, int]) -> float:
    """Samples of an epoch."""
    size = sizes.get(task.data, 1000)
    return min(task.samples or size, size) * (1 - (task.recipe.validation or Dataset.validation))


def _of_training(task: Training, held_in: float) -> float:
    """Epochs times samples times the passes of a step; and the validation after each epoch."""
    recipe, method = (
        task.recipe,
        task.method(*([] if task.manifold is None else [Manifold(nn.Identity(), nn.Identity())])),
    )
    places = method.places
    climbs = sum(_of_ascent(place) for place in places if isinstance(place, Ascent))
    classes = KINDS.get(task.data, KINDS["mnist"]).classes
    penalties = sum(_of_penalty(penalty, classes) for _, penalty in method.penalties)
    descents = (len(places) + penalties) * (2 if recipe.awp else 1)
    checked = min(recipe.valid_examples, held_in) * (1 + recipe.valid_steps)
    return recipe.epochs * (held_in * (descents + climbs) + checked)


def _of_penalty(penalty: Any, classes: int) -> float:
    """Passes of a sample: of the cross-Lipschitz one a gradient per class and that of each again; of R2 those of two
    networks on two batches (as measured), and the bisections.
    """
    match penalty:
        case CrossLipschitz():
            return 2.0 * (penalty.directions or classes)
        case GeneratedMargin():
            return 7 + penalty.halvings * _FORWARD
    return float(getattr(penalty, "samples", 3))


def _of_ascent(ascent: Ascent) -> float:
    """Steps of a sample; drawn from 1 to K they are (K + 1)/2, unless the whole batch goes all the way."""
    steps = ascent.steps
    most = steps if isinstance(steps, int) else steps.most
    alike = isinstance(steps, int | Fixed) or ascent.mode == "train"
    targets = ascent.num_targets or 1
    each = _BEHIND if isinstance(ascent.space, Latent) else 1.0
    return each * (most if alike else (most + 1) / 2) * ascent.restarts * ascent.eot_samples * targets


def _of_attack(attack: AttackLike) -> float:
    """Passes of a sample that withstands the attack to the end."""
    match attack:
        case Ascent():
            return _of_ascent(attack)
        case FAB():
            return attack.steps * attack.targets * attack.restarts
        case Square():
            return attack.queries * attack.restarts * _FORWARD
        case RandomSearch():
            return attack.draws * _FORWARD
        case Composite():
            return sum(_of_attack(part) for _, part in getattr(attack, "parts", ()))
        case Wrapped():
            return _of_attack(attack.attack)
    return 100.0


def per_pass(net: Net, data: str, rates: Rates | None = None) -> float:
    """Seconds of one sample's pass through a network: of `rates`, or measured once in this process, on the GPU if there
    is one.
    """
    words = _described(net, data)
    return rates[words] if rates and words in rates else _measured(words)


def all_rates(tasks: Iterable[Task]) -> Rates:
    """The seconds per pass of every network of the tasks, measured here, as `seconds` takes them."""
    described = {_described(_net(task), task.data) for task in tasks if not isinstance(task, StudyTask)}
    return {words: _measured(words) for words in sorted(described)}


def _described(net: Net, data: str) -> str:
    """All that a pass depends on, in words."""
    kind = KINDS.get(data, KINDS["mnist"])
    words = {"name": net.name, "options": dict(net.options), "members": net.members, "shape": kind.shape}
    words |= {"classes": kind.classes, "dropout_samples": net.dropout_samples, "seed": 0}
    return dumps(words)


@cache
def _measured(words: str) -> float:
    """The best of three batches, of as many samples as take some hundredths of a second; on a CPU the time of its one
    thread, which other work beside it does not lengthen.
    """
    net: dict[str, Any] = loads(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    try:
        predictive = as_predictive(build_model(net))
        predictive.module.to(device)

        def took(count: int) -> float:
            x = torch.full((count, *net["shape"]), 0.5, device=device)
            streams = Streams.of(0, torch.arange(count, device=device))
            with frozen_model(predictive, x) as draw:
                began = clock()
                value_and_gradient(entropy, draw(streams), x)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                return (clock() - began) / count

        took(2)  # what is only done once
        count = 2
        while count < AT_ONCE and count * took(count) < 0.03:
            count *= 2
        return min(took(count) for _ in range(3))
    except EquipoiseError:  # a network of the user's own, or one for other inputs: sweeps say so where it matters
        return 1e-4
    finally:
        torch.set_num_threads(threads)
