"""Splitting a network into an encoder and the classifier after it, for perturbations in latent space."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import nn

from equipoise.core.errors import EquipoiseError, kind_of, require, unknown

INPUT = "input"
"""Name of the split before the first layer."""


@runtime_checkable
class Staged(Protocol):
    """A network that names its stages, of which its forward pass is the composition."""

    def named_stages(self) -> dict[str, nn.Module]:
        """Return the stages by name, in order; they share the network's parameters."""
        ...


def split(module: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Return encoder and classifier, sharing the parameters of `module`: `classifier(encoder(x)) = module(x)`, bit for
    bit (U, Sec. 5.3).

    `layer` is the last stage of the encoder: a name of `stages(module)`, or the end of only one, after a dot: `fc1` for
    `net.fc1`. `input` gives `(nn.Identity(), module)`. Raises `EquipoiseError` for a network that `stages` refuses, an
    unknown layer, and the last one, after which there is no classifier.
    """
    if layer == INPUT:
        return nn.Identity(), module
    named = stages(module)
    names = list(named)
    cut = names.index(_full_name(layer, names)) + 1
    require(
        cut < len(names),
        f"layer {layer!r} is the last of the network, no classifier is left after it: "
        f"choose one of {', '.join([INPUT, *names[:-1]])}.",
    )
    layers = list(named.values())
    return nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:])


def stages(module: nn.Module) -> dict[str, nn.Module]:
    """Return the stages of a network by name, in order: the network is their composition, which `split` can cut.

    They are the network's own `named_stages()`, or the layers of an `nn.Sequential`, in which another `Sequential` and
    a network with stages are replaced by theirs, under names such as `net.conv1`. Raises `EquipoiseError` for any other
    network, since the operations between its layers are not known.
    """
    require(
        _direct_stages(module) is not None,
        f"{kind_of(module)} cannot be split: give it a method `named_stages()` that returns its stages as "
        f"{{name: module}}, in order, or make it an nn.Sequential.",
    )
    return dict(_flattened(module))


def _flattened(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    require(
        not (module._forward_hooks or module._forward_pre_hooks),
        f"{kind_of(module)} with forward hooks cannot be split, as its stages would run without them.",
    )
    for name, stage in (_direct_stages(module) or {}).items():
        if isinstance(module, Staged) or _direct_stages(stage) is None:
            yield name, stage
        else:
            yield from ((f"{name}.{inner_name}", inner) for inner_name, inner in _flattened(stage))


def _direct_stages(module: nn.Module) -> dict[str, nn.Module] | None:
    if isinstance(module, Staged):
        return module.named_stages()
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return {name: layer for name, layer in module._modules.items() if layer is not None}  # with repetitions
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
