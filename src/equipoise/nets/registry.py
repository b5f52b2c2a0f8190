"""Networks by name: the papers' own, and the user's as `package.module:factory`."""

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

from equipoise.core.errors import EquipoiseError, require, require_integer, unknown
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
_EXTRACTORS: dict[str, Callable[..., nn.Module]] = {
    "fc-resnet": FCResNet,
    "wide-resnet-features": WideResNetFeatures,
}


def names() -> tuple[str, ...]:
    """Classifiers that `build` knows, beside any `package.module:factory`."""
    return tuple(_NETS)


def extractors() -> tuple[str, ...]:
    """Networks that `build` knows and that return features instead of logits, for Gaussian processes."""
    return tuple(_EXTRACTORS)


def build(
    name: str,
    shape: Sequence[int],
    classes: int = 10,
    *,
    seed: int = 0,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    **options: Any,
) -> nn.Module:
    """A network that maps (batch, *shape) in [0, 1] to logits (batch, classes), on the CPU, in train mode.

    `name` is one of `names()`, one of `extractors()`, which return features (batch, features) instead, or
    `package.module:factory` for the user's own: a function or class, looked up with the current directory importable,
    that returns an `nn.Module`; it is given those of `shape`, `classes` and `options`
    that it has parameters for. `shape` is (channels, height, width) or (features,). `normalize = (mean, std)` puts a
    `Normalize` layer first. Weights are PyTorch's default initialisation drawn from `seed`; the global random state is
    left as it was. Raises `EquipoiseError` for an unknown name or option, a shape the network cannot take, and a
    factory that cannot be imported, fails, or returns something else.
    """
    shape = tuple(shape)
    net = make(name, shape, classes, seed=seed, **options)
    if not isinstance(net, nn.Module):
        raise EquipoiseError(f"net {name!r} returned a {type(net).__name__}; expected a torch.nn.Module.")
    model = net if normalize is None else _normalized(name, net, shape, *normalize)
    if ":" not in name:
        built = {"name": name, "shape": list(shape), "classes": classes, "seed": seed, "options": options}
        setattr(model, _BUILT, built | {"normalize": normalize})
    return model


def how_built(model: nn.Module) -> dict[str, Any] | None:
    """The arguments of `build` that made the network; None if that did not, or for a factory of the user's."""
    return getattr(model, _BUILT, None)


def make(
    name: str, shape: Sequence[int], classes: int = 10, *, seed: int = 0, **options: Any
) -> "nn.Module | Predictive":
    """As `build`, from a factory that may also return a predictive, such as an ensemble."""
    shape = tuple(shape)
    require(
        len(shape) in (1, 3) and all(side >= 1 for side in shape),
        f"the shape of one input must be (channels, height, width) or (features,), all at least 1, got {shape}.",
    )
    require(classes >= 2, f"a classifier needs at least 2 classes, got {classes}.")
    require_integer("seed", seed)
    with torch.random.fork_rng(devices=()), torch.device("cpu"), _current_directory_importable():
        factory = _find(name)
        torch.default_generator.manual_seed(seed)  # after the import, which may draw numbers of its own
        return _call(name, factory, {"shape": shape, "classes": classes}, options)


def count_parameters(model: nn.Module) -> int:
    """Number of scalars among the parameters of `model`, trained or frozen, each shared one counted once."""
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
    known = _NETS | _EXTRACTORS
    if name in known:
        return known[name]
    if ":" not in name:
        raise unknown("net", name, [*known, "package.module:factory"])
    factory = _imported("net", name, "factory")
    if callable(factory) and not isinstance(factory, nn.Module):
        return cast(Callable[..., nn.Module], factory)
    attribute = name.partition(":")[2]
    raise EquipoiseError(
        f"net {name!r}: {attribute!r} is a {type(factory).__name__}; expected a function or class that makes a model."
    )


def imported(what: str, name: str) -> Any:
    """The user's own `package.module:name`, looked up with the current directory importable.

    `what` says in messages what it is. Raises `EquipoiseError` if it cannot be imported.
    """
    with _current_directory_importable():
        return _imported(what, name, what)


def _imported(what: str, name: str, attribute_is: str) -> Any:
    module_name, _, attribute = name.partition(":")
    require(bool(module_name and attribute), f"{what} {name!r} is not of the form package.module:{attribute_is}.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when imported
        raise EquipoiseError(
            f"cannot import {module_name!r} for {what} {name!r} ({type(error).__name__}: {error}); run from the "
            f"directory that holds it, or install it."
        ) from error
    require(hasattr(module, attribute), f"{what} {name!r}: module {module_name!r} has no {attribute!r}.")
    return getattr(module, attribute)


def _call(
    name: str, factory: Callable[..., nn.Module], offered: dict[str, Any], options: dict[str, Any]
) -> "nn.Module | Predictive":
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some callables written in C have no signature
        parameters = ()
    by_name = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    choices = [p for p in by_name if p not in offered]
    for option in options if not takes_any else ():
        require(bool(choices), f"net {name!r} takes no options, got {option!r}.")
        if option not in choices:
            raise unknown(f"option of net {name!r}", option, choices)
    arguments = {k: v for k, v in offered.items() if k in by_name} | options
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
    except Exception as error:  # whatever the user's factory does
        raise EquipoiseError(f"net {name!r} could not be made: {type(error).__name__}: {error}.") from error
    require(
        isinstance(net, nn.Module | Predictive),
        f"net {name!r} returned a {type(net).__name__}; expected a torch.nn.Module.",
    )
    return net


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's module may have removed it itself
            sys.path.remove(here)
