"""What `train` chooses where nothing is typed, each choice with its reason: `equipoise train photos --size 64`.

A choice becomes words of the command line, as if it had been typed: so it stands in the record, and a run resumes with
it. Nothing is chosen for a run that is resumed.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from equipoise.cli.console import say
from equipoise.cli.method_options import METHODS, choice_of, spelled_out
from equipoise.cli.options import options_of
from equipoise.cli.parsing import first_word, parse
from equipoise.cli.requests import Train
from equipoise.cli.training import net_record
from equipoise.cli.words import FLAG, HELP
from equipoise.core.errors import EquipoiseError, require
from equipoise.core.torchrun import World
from equipoise.data import Dataset, load_as, names
from equipoise.data.distances import class_distances
from equipoise.geometry import Box
from equipoise.losses.terms import as_method
from equipoise.models import as_predictive
from equipoise.training import build_model, training_split

METHOD = "udp"
"""The method where none is named."""
MOST_EPOCHS = 200
"""Of a training that is given minutes."""
_SMALLEST_IMAGE, _SMALL_IMAGE = 12, 40  # pixels
_BATCHES, _STEPS = (16, 256), 20
_USUAL = {"linf": (0.1, 8 / 255), "l2": (1.5, 0.5), "l1": (10.0, 12.0)}
"""Usual radii of grey and of colour images, in [0, 1]."""
_TIMED = 3
_MINUTES = "--minutes chooses the number of epochs"
_SHARE = 0.9
"""Of the minutes, which is spent on training: the rest is for loading, checkpoints and an estimate that is too low."""


def with_choices(argv: Sequence[str]) -> tuple[list[str], Dataset | None]:
    """The words of a `train` command with what it leaves open, which is said with reasons; and the data, if they had to
    be read for that. Other commands are returned as they are.
    """
    words = list(argv)
    if words[:1] != ["train"] or not HELP.keys().isdisjoint(words):
        return words, None
    if "--resume" in words:
        require(not any(_flag(word) == "--minutes" for word in words), f"{_MINUTES} of a new run: give --epochs.")
        return words, None
    words = _with_method(spelled_out(words))
    index = first_word(words[1:], METHOD)
    method = None if index is None or words[1 + index] not in METHODS else words[1 + index]
    typed = {_flag(word) for word in words if FLAG.match(word)}
    missing = [flag for flag in _CHOOSE if flag not in typed and (flag != "--epochs" or "--minutes" in typed)]
    required = [] if method is None else [option.flag for option in options_of(choice_of(method)) if option.required]
    missing = [flag for flag in missing if flag != "--eps" or flag in required]
    require(
        not {"--minutes", "--epochs"} <= typed,
        f"{_MINUTES}: leave out --epochs, or --minutes.",
    )
    world = World.from_environment()
    require(
        "--minutes" not in typed or world is None or world.size == 1,
        f"{_MINUTES} by the time of a step, which differs between the {world and world.size} processes of torchrun: "
        "give --epochs.",
    )
    if method is None or not missing:
        return words, None  # `parse` says what is wrong with the former
    filler = ["--eps", "0.1"] if "--eps" in missing else []
    draft = _draft([*words, *filler])
    draft.variation.check()
    data = load_as(draft.reading, draft.data, draft.data_root)
    for flag in missing:
        value, reason = _CHOOSE[flag](draft, data)
        words += [flag, value] if value else []
        filler = [] if flag == "--eps" else filler
        say(f"{flag} {value}: {reason}" if value else reason)
        draft = _draft([*words, *filler])
    return _without(words, "--minutes") if "--epochs" in missing else words, data


def _flag(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")


def _without(words: Sequence[str], flag: str) -> list[str]:
    """The words without an option and its value."""
    kept, after = [], False
    for word in words:
        if not after and word.partition("=")[0] != flag:
            kept.append(word)
        after = word == flag
    return kept


def _draft(words: Sequence[str]) -> Train:
    request = parse(words)
    assert isinstance(request, Train)
    return request


def _with_method(words: list[str]) -> list[str]:
    """The words with a method, where the first one names data instead."""
    index = first_word(words[1:], METHOD)
    if index is None or words[1 + index] in METHODS or (about := words[1 + index]) == "":
        return words
    if about not in names() and not Path(about).exists():
        return words  # `parse` says that it is no method
    rest = words[1 : 1 + index] + words[2 + index :]
    require(
        not any(word.partition("=")[0] == "--data" for word in rest),
        f"{about} is no method, and --data names the data: give one of them, or a method and --data.",
    )
    say(f"method {METHOD}: none was named; the others are listed by: equipoise train --help")
    return ["train", METHOD, "--data", about, *rest]


def _net(draft: Train, data: Dataset) -> tuple[str, str]:
    """A network by the shape of the inputs."""
    if draft.init is not None or draft.gp_inducing_points or draft.widths:
        return "", f"--net {draft.net}: as usual"
    if len(data.shape) == 1:
        return "mlp", "the inputs are features, not images"
    channels, *sides = data.shape
    size = f"images of {sides[1]} x {sides[0]} pixels"
    if min(sides) < _SMALLEST_IMAGE:
        return "mlp", f"{size} are too small for convolutions"
    if channels == 1 and max(sides) <= _SMALL_IMAGE:
        return "lenet", f"the usual one for grey {size}"
    if draft.recipe.pick_device().type == "cuda":
        return ("preact-resnet18" if max(sides) <= 2 * _SMALL_IMAGE else "resnet18"), f"{size}, and there is a GPU"
    return "small-cnn", f"{size} without a GPU, on which a residual network would take hours"


def _batch_size(draft: Train, data: Dataset) -> tuple[str, str]:
    """A power of two, so that an epoch has about 20 steps, if that is possible."""
    held_in = len(_limited(draft, data).train)
    size = 2 ** round(math.log2(max(held_in / _STEPS, 1)))
    size = min(max(size, _BATCHES[0]), _BATCHES[1])
    return str(size), f"{-(-held_in // size):,} steps an epoch with {held_in:,} training samples"


def _eps(draft: Train, data: Dataset) -> tuple[str, str]:
    """The usual radius, or a smaller one where classes lie nearer."""
    norm = getattr(draft.method, "norm", "linf")
    is_colour = len(data.shape) == 3 and data.shape[0] > 1
    low, high = data.box
    width = high - low if math.isfinite(high - low) else 1.0
    usual = _USUAL[norm][is_colour] * width
    text = "8/255" if math.isclose(usual, 8 / 255) else f"{usual:g}"
    try:
        limit = class_distances(data.train, norm, draft.recipe.seed).eps
    except EquipoiseError:  # all samples are of one class, which training says
        limit = 0.0
    kind = "colour images" if is_colour else "grey images" if len(data.shape) == 3 else "features in [0, 1]"
    if 0 < limit < usual:
        return f"{limit:g}", f"beyond it 5 % of the samples reach half-way to another class in {norm}"
    reach = f"; the classes are far enough apart for {limit:g}" if limit else ""
    return text, f"usual in {norm} for {kind}{reach}"


def _epochs(draft: Train, data: Dataset) -> tuple[str, str]:
    """As many as fit into the minutes, by the time of a few steps."""
    assert draft.training_minutes is not None
    data = _limited(draft, data)
    held_in, held_out = training_split(data, draft.recipe)
    batch = min(draft.recipe.batch_size, len(held_in))
    seconds = _seconds_per_step(draft, data, held_in.x[:batch], held_in.y[:batch])
    validated = min(len(held_out), draft.recipe.valid_examples)
    each = seconds * (len(held_in) / batch + validated / batch)
    epochs = int(60 * _SHARE * draft.training_minutes / each)
    if epochs > MOST_EPOCHS:
        return str(MOST_EPOCHS), f"more are of no use, although {draft.training_minutes:g} minutes allow {epochs:,}"
    require(
        epochs >= 1,
        f"an epoch takes about {each / 60:.1f} minutes: give --minutes more, or fewer --examples or --steps.",
    )
    return str(epochs), f"an epoch takes about {each:.1f} s, and there are {draft.training_minutes:g} minutes"


def _limited(draft: Train, data: Dataset) -> Dataset:
    return data if draft.examples is None else data.limit(draft.examples, draft.recipe.seed)


def _seconds_per_step(draft: Train, data: Dataset, x: Tensor, y: Tensor) -> float:
    """The time of a training step on a network of its own; the first one, which warms up, does not count."""
    if hasattr(draft.method, "manifold_epochs"):
        raise EquipoiseError("--minutes does not know how long an auto-encoder trains: give --epochs.")
    device = draft.recipe.pick_device()
    predictive = as_predictive(build_model(net_record(draft, data)))
    module = predictive.module.to(device).train()
    made: Any = draft.variation.of(draft.method, box=Box(*data.box))
    method = as_method(made.at(1.0) if hasattr(made, "at") else made)
    seconds = []
    for step in range(1 + _TIMED):
        start = time.perf_counter()
        method.loss(predictive, x.to(device), y.to(device), step=step).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        module.zero_grad(set_to_none=True)
    return median(seconds[1:])


_CHOOSE: dict[str, Callable[[Train, Dataset], tuple[str, str]]] = {
    "--net": _net,
    "--batch-size": _batch_size,
    "--eps": _eps,
    "--epochs": _epochs,
}
"""What chooses the value of an option, in this order; the last one needs the others."""
