"""A network cut in two, an encoder up to a layer and the classifier that follows: for perturbations in latent space."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import nn

from equipoise.core.errors import EquipoiseError, require, unknown

INPUT = "input"
"""The name of the place before the first layer."""


@runtime_checkable
class Staged(Protocol):
    """A network that says of which stages, one after the other, its forward consists."""

    def named_stages(self) -> dict[str, nn.Module]:
        """The stages by name, in order; applied in turn they are the network. They share its parameters."""
        ...


def split(module: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Encoder and classifier, sharing the parameters of `module`: `classifier(encoder(x)) = module(x)`, bit for bit.

    `layer` is the last stage of the encoder (U, Sec. 5.3: the classifier is "the rest of the network"): a name of
    `stages(module)`, or the end of one, from a dot on, if no other ends so: `fc1` for `net.fc1`. `input` gives
    `(nn.Identity(), module)`. Raises `EquipoiseError` for a network that `stages` refuses, a layer that does not
    exist, and the last one, after which there is no classifier.
    """
    if layer == INPUT:
        return nn.Identity(), module
    parts = stages(module)
    names = list(parts)
    cut = names.index(_full_name(layer, names)) + 1
    require(
        cut < len(names),
        f"layer {layer!r} is the last of the network, no classifier is left after it: "
        f"choose one of {', '.join([INPUT, *names[:-1]])}.",
    )
    in_order = list(parts.values())
    return nn.Sequential(*in_order[:cut]), nn.Sequential(*in_order[cut:])


def stages(module: nn.Module) -> dict[str, nn.Module]:
    """The parts of a network by name, in order: applied in turn they are the network, `split` cuts after any of them.

    They are what the network itself names in `named_stages()`, or the layers of an `nn.Sequential`. In that, another
    `Sequential` and a network with stages of its own are replaced by their parts, under names such as `net.conv1`.
    Raises `EquipoiseError` for any other network, since what happens between its layers cannot be seen.
    """
    require(
        _parts(module) is not None,
        f"a {type(module).__name__} cannot be split: give it a method `named_stages()` that returns its stages as "
        f"{{name: module}}, in order, or make it an nn.Sequential.",
    )
    return dict(_flattened(module))


def _flattened(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    require(
        not (module._forward_hooks or module._forward_pre_hooks),
        f"a {type(module).__name__} with forward hooks cannot be split, its parts would run without them: remove them.",
    )
    for name, part in (_parts(module) or {}).items():
        if isinstance(module, Staged) or _parts(part) is None:
            yield name, part
        else:
            yield from ((f"{name}.{inner}", stage) for inner, stage in _flattened(part))


def _parts(module: nn.Module) -> dict[str, nn.Module] | None:
    if isinstance(module, Staged):
        return module.named_stages()
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return {
            name: part for name, part in module._modules.items() if part is not None
        }  # children() skips repetitions
    return None


def _full_name(layer: str, names: list[str]) -> str:
    if layer in names:
        return layer
    ends = [name for name in names if name.endswith(f".{layer}")]
    if not ends:
        raise unknown("layer", layer, [INPUT, *names[:-1]])
    if len(ends) > 1:
        raise EquipoiseError(f"layer {layer!r} is ambiguous: choose one of {', '.join(ends)}.")
    return ends[0]
