"""Networks by name: the papers', and the user's own as `package.module:factory`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, kind_of, require, require_integer, unknown
from equipoise.core.types import Predictive
from equipoise.nets.convolutional import CNN4, LeNet, SmallCNN
from equipoise.nets.due import FCResNet, WideResNetFeatures
from equipoise.nets.mlp import MLP
from equipoise.nets.normalize import Normalize
from equipoise.nets.residual import PreActResNet18, PreActResNet18UDP, ResNet18, ResNet20, WideResNet

_NETS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "lenet": LeNet,
    "lenet-wide": partial(LeNet, filters=(32, 64), hidden=(256, 120)),
    "cnn4": CNN4,
    "small-cnn": SmallCNN,
    "preact-resnet18": PreActResNet18,
    "preact-resnet18-udp": PreActResNet18UDP,
    "resnet18": ResNet18,
    "resnet18-dropout": partial(ResNet18, dropout=0.2),
    "resnet20": ResNet20,
    "wide-resnet": WideResNet,
}
_BUILT = "_equipoise_built"
_EXTRACTORS: dict[str, Callable[..., nn.Module]] = {"fc-resnet": FCResNet, "wide-resnet-features": WideResNetFeatures}


def names() -> tuple[str, ...]:
    """Return the names of classifiers for `build`, beside any `package.module:factory`."""
    return tuple(_NETS)


def extractors() -> tuple[str, ...]:
    """Return the names of networks for `build` that return features instead of logits, for Gaussian processes."""
    return tuple(_EXTRACTORS)


@checked_call()
def build(
    name: str,
    shape: Sequence[int] | int,
    classes: int = 10,
    *,
    seed: int = 0,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network that maps (batch, *shape) in [0, 1] to logits (batch, classes), on the CPU, in train mode.

    `name` is one of `names()`; one of `extractors()`, which return features (batch, features) instead; or
    `package.module:factory`, a function or class of the user's that returns an `nn.Module`, imported with the current
    directory on the path and called with those of `shape`, `classes` and `options` that it takes. `shape` is (channels,
    height, width), (features,) or the number of features. `normalize = (mean, std)` puts a `Normalize` layer first.
    Weights are PyTorch's default initialisation with `seed`; the global random state is left unchanged. Raises
    `EquipoiseError` for an unknown name or option, a shape that the network does not take, and a factory that cannot be
    imported, fails, or returns something else.
    """
    shape = _checked_shape(shape)
    net = make(name, shape, classes, seed=seed, **options)
    if not isinstance(net, nn.Module):
        raise EquipoiseError(f"net {name!r} returned {kind_of(net)}; expected a torch.nn.Module.")
    model = net if normalize is None else _normalized(name, net, shape, *normalize)
    if ":" not in name:
        built = {"name": name, "shape": list(shape), "classes": classes, "seed": seed, "options": options}
        setattr(model, _BUILT, built | {"normalize": normalize})
    return model


def how_built(model: nn.Module) -> dict[str, Any] | None:
    """Return the arguments of `build` that made the network; None if there are none, or for a factory of the user's."""
    return getattr(model, _BUILT, None)


def make(
    name: str, shape: Sequence[int] | int, classes: int = 10, *, seed: int = 0, **options: Any
) -> "nn.Module | Predictive":
    """Build as `build`, without normalisation; a factory may also return a predictive, such as an ensemble."""
    net = made(name, shape, classes, seed=seed, **options)
    require(
        isinstance(net, nn.Module | Predictive),
        f"net {name!r} returned {kind_of(net)}; expected a torch.nn.Module.",
    )
    return net


def made(name: str, shape: Sequence[int] | int, classes: int = 10, *, seed: int = 0, **options: Any) -> Any:
    """Return what the network or factory `name` makes, called as by `build`, whatever it is."""
    shape = _checked_shape(shape)
    require(classes >= 2, f"a classifier needs at least 2 classes, got {classes}.")
    require_integer("seed", seed)
    with torch.random.fork_rng(devices=()), torch.device("cpu"), _current_directory_importable():
        factory = _find(name)
        torch.default_generator.manual_seed(seed)  # after the import, which may draw numbers of its own
        return _call(name, factory, {"shape": shape, "classes": classes}, options)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    sides = (shape,) if isinstance(shape, int) else tuple(shape) if isinstance(shape, Sequence) else ()
    require(
        len(sides) in (1, 3) and all(isinstance(side, int) and side >= 1 for side in sides),
        f"the shape of one input must be (channels, height, width) or (features,), all at least 1, got {shape!r:.80}.",
    )
    return sides


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of `model`, trained or frozen; shared ones count once."""
    return sum(p.numel() for p in model.parameters())


def _normalized(
    name: str, net: nn.Module, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    require(
        not any(isinstance(layer, Normalize) for layer in net.modules()),
        f"net {name!r} already holds a Normalize layer: inputs would be normalised twice; leave `normalize` out.",
    )
    require(
        len(mean) in (1, shape[0]),
        f"normalisation needs 1 or {shape[0]} means for inputs of shape {tuple(shape)}, got {len(mean)}.",
    )
    model = nn.Sequential()
    model.add_module("normalize", Normalize(mean, std))
    model.add_module("net", net)
    return model


def _find(name: str) -> Callable[..., nn.Module]:
    nets = _NETS | _EXTRACTORS
    if name in nets:
        return nets[name]
    if ":" not in name:
        raise unknown("net", name, [*nets, "package.module:factory"])
    factory = imported("net", name, "factory")
    if callable(factory) and not isinstance(factory, nn.Module):
        return cast(Callable[..., nn.Module], factory)
    attribute = name.partition(":")[2]
    raise EquipoiseError(
        f"net {name!r}: {attribute!r} is {kind_of(factory)}; expected a function or class that makes a model."
    )


def imported(kind: str, name: str, attribute_kind: str | None = None) -> Any:
    """Import the user's own `package.module:name`, with the current directory on the path.

    `kind` is what messages call it, and `attribute_kind` the name in it. Raises `EquipoiseError` if that fails.
    """
    module_name, _, attribute = name.partition(":")
    form = f"package.module:{attribute_kind or kind}"
    require(bool(module_name and attribute), f"{kind} {name!r} is not of the form {form}.")
    try:
        with _current_directory_importable():
            module = importlib.import_module(module_name)
    except Exception as error:  # importing the user's module may raise anything
        raise EquipoiseError(
            f"cannot import {module_name!r} for {kind} {name!r} ({type(error).__name__}: {error}); run from the "
            f"directory that holds it, or install it."
        ) from error
    require(hasattr(module, attribute), f"{kind} {name!r}: module {module_name!r} has no {attribute!r}.")
    return getattr(module, attribute)


def _call(name: str, factory: Callable[..., nn.Module], offered: dict[str, Any], options: dict[str, Any]) -> Any:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some callables written in C have no signature
        parameters = ()
    accepted = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    choices = [p for p in accepted if p not in offered]
    for option in () if any(p.kind is p.VAR_KEYWORD for p in parameters) else options:
        require(bool(choices), f"net {name!r} takes no options, got {option!r}.")
        if option not in choices:
            raise unknown(f"option of net {name!r}", option, choices)
    arguments = {k: v for k, v in offered.items() if k in accepted} | options
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in arguments
    ]
    require(
        not missing,
        f"net {name!r} requires {', '.join(missing)}; a factory gets `shape`, `classes` and the options "
        f"asked for, so give every other parameter a default.",
    )
    try:
        net = factory(**arguments)
    except EquipoiseError:
        raise
    except Exception as error:  # the user's factory may raise anything
        raise EquipoiseError(f"net {name!r} could not be made: {type(error).__name__}: {error}.") from error
    return net


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's module may have removed it
            sys.path.remove(folder)
