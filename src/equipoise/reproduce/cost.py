"""Estimates of how long tasks take: passes through a network, times what one pass costs on this machine.

A pass is one sample forward and backward. Estimates serve to plan and to show the time left; a sweep corrects them by
what its finished tasks took.
"""

import time
from collections.abc import Iterable, Mapping
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
from equipoise.core.types import Predictive
from equipoise.data import Dataset
from equipoise.evaluation import suite
from equipoise.generators import GeneratedMargin, Manifold
from equipoise.losses.objectives import entropy
from equipoise.models import as_predictive
from equipoise.reproduce.studies import STUDIES
from equipoise.reproduce.studies.processes import one_thread
from equipoise.reproduce.tasks import KINDS, SIZES, DataManifold, Evaluated, MeasureTask, Net, StudyTask, Task, Training
from equipoise.results.costs import Work
from equipoise.training import build_model
from equipoise.training.penalties import CrossLipschitz

_FORWARD = 1 / 3  # of a pass: the backward one costs about twice as much
_SURVIVE = 0.5  # share of the samples that use up an attack's budget; the others are misclassified early
_BEHIND = 0.05  # of a pass: the layers behind a latent space, which are the last ones
_MEASURED = 200  # passes per sample and network of a measurement: a guess
_AUTO_ENCODER = 10  # passes of a LeNet that one of an auto-encoder costs
_START = 1.0  # seconds to read data and build networks

_QUICK = 5.0  # seconds of the quick form

Rates = Mapping[str, float]
"""Seconds of one sample's pass through a network, by what the network is."""


def work(tasks: Iterable[Task], sizes: Mapping[str, int] = SIZES, rates: Rates | None = None) -> Work:
    """Return the estimated time of all tasks, which come after those they need; `rates` as in `seconds`."""
    in_all = 0.0
    ends: dict[str, float] = {}  # of each task, on as many workers as there are tasks
    for task in tasks:
        own = seconds(task, sizes, rates)
        ends[repr(task)] = own + max((ends.get(repr(one), 0.0) for one in task.needs), default=0.0)
        in_all += own
    return Work(in_all, max(ends.values(), default=0.0))


def seconds(task: Task, sizes: Mapping[str, int] = SIZES, rates: Rates | None = None) -> float:
    """Return the estimated seconds of a task on one core of this machine, or on its GPU. `sizes` are the datasets'
    numbers of training samples, `rates` seconds per pass that were measured elsewhere; others are measured here.
    """
    if isinstance(task, StudyTask):
        return _QUICK if task.quick else STUDIES[task.name].seconds
    return _START + passes(task, sizes) * per_pass(_net(task), task.data, rates)


def _net(task: Task) -> Net:
    """The network whose passes count."""
    match task:
        case Training():
            return task.net
        case Evaluated():
            return task.of.net
        case MeasureTask() if task.of:
            return task.of[0].net
    return Net("lenet")


def passes(task: Task, sizes: Mapping[str, int] = SIZES) -> float:
    """Return the passes through the network: samples times forward and backward passes of each."""
    match task:
        case Training():
            return _of_training(task, _epoch_size(task, sizes))
        case DataManifold():
            return task.recipe.epochs * _epoch_size(task, sizes) * _AUTO_ENCODER
        case Evaluated():
            attacks = suite(
                task.attacks, task.eps, task.norm, steps=task.steps, step_size=task.step_size, restarts=task.restarts
            )
            steps = sum(_of_attack(attack) for _, attack in attacks) * max(len(task.proxies), 1)
            return task.examples * (_FORWARD + _SURVIVE * steps)
        case MeasureTask():
            return task.examples * _MEASURED * len(task.of)
    return 0.0


def _epoch_size(task: Training | DataManifold, sizes: Mapping[str, int]) -> float:
    size = sizes.get(task.data, 1000)
    return min(task.samples or size, size) * (1 - (task.recipe.validation or Dataset.validation))


def _of_training(task: Training, samples: float) -> float:
    """Epochs times samples times the passes of a step; and the validation after each epoch."""
    recipe = task.recipe
    method = task.method(*([] if task.manifold is None else [Manifold(nn.Identity(), nn.Identity())]))
    ascents = sum(_of_ascent(point) for point in method.perturbations if isinstance(point, Ascent))
    classes = KINDS.get(task.data, KINDS["mnist"]).classes
    penalties = sum(_of_penalty(penalty, classes) for _, penalty in method.penalties)
    descents = (len(method.perturbations) + penalties) * (2 if recipe.awp else 1)
    validation = min(recipe.valid_examples, samples) * (1 + recipe.valid_steps)
    return recipe.epochs * (samples * (descents + ascents) + validation)


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
    count = steps if isinstance(steps, int) else steps.most
    if not isinstance(steps, int | Fixed) and ascent.mode != "train":
        count = (count + 1) / 2
    cost = _BEHIND if isinstance(ascent.space, Latent) else 1.0
    return cost * count * ascent.restarts * ascent.eot_samples * (ascent.num_targets or 1)


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
            return sum(_of_attack(member) for _, member in getattr(attack, "parts", ()))
        case Wrapped():
            return _of_attack(attack.attack)
    return 100.0


def per_pass(net: Net, data: str, rates: Rates | None = None) -> float:
    """Return the seconds of one sample's pass through a network: of `rates`, or measured once in this process, on the
    GPU if there is one.
    """
    description = _described(net, data)
    return rates[description] if rates and description in rates else _measured(description)


def all_rates(tasks: Iterable[Task]) -> Rates:
    """Return the seconds per pass of every network of the tasks, measured here, as `seconds` takes them."""
    descriptions = {_described(_net(task), task.data) for task in tasks if not isinstance(task, StudyTask)}
    return {description: _measured(description) for description in sorted(descriptions)}


def _described(net: Net, data: str) -> str:
    """All that a pass depends on, as JSON."""
    kind = KINDS.get(data, KINDS["mnist"])
    content = {"name": net.name, "options": dict(net.options), "members": net.members, "shape": kind.shape}
    return dumps(content | {"classes": kind.classes, "dropout_samples": net.dropout_samples, "seed": 0})


@cache
def _measured(description: str) -> float:
    """The best of three batches, of as many samples as take some hundredths of a second; on a CPU the time of its one
    thread, which other work beside it does not lengthen.
    """
    net: dict[str, Any] = loads(description)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if device.type == "cuda" else time.thread_time

    def seconds_per_sample(predictive: Predictive, count: int) -> float:
        x = torch.full((count, *net["shape"]), 0.5, device=device)
        streams = Streams.of(0, torch.arange(count, device=device))
        with frozen_model(predictive, x) as draw:
            began = clock()
            value_and_gradient(entropy, draw(streams), x)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return (clock() - began) / count

    try:
        with one_thread():  # as a worker has
            predictive = as_predictive(build_model(net))
            predictive.module.to(device)
            seconds_per_sample(predictive, 2)  # what is only done once
            count = 2
            while count < AT_ONCE and count * seconds_per_sample(predictive, count) < 0.03:
                count *= 2
            return min(seconds_per_sample(predictive, count) for _ in range(3))
    except EquipoiseError:  # a network of the user's own, or one for other inputs: sweeps say so where it matters
        return 1e-4
