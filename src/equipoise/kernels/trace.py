"""What a network does to a sample, as a list of layers: the one trace that kernels and bounds read.

The network runs on two samples while a mode watches the functions of PyTorch that it calls; how its code is written
does not matter. Every function of something that depends on the input is a node: a layer with its weights, or
`Unknown`, with the reason. Whatever depends on an unknown node is unknown itself.

    trace = trace_of(net, x)
    for node in trace.nodes:
        print(node.layer, node.parents, node.shape)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equipoise.core.types import Points
from equipoise.kernels._layer_calls import LAYERS, Ref, UnknownLayerError, need
from equipoise.kernels.layers import Layer, Members, Reshape, Unknown, tensors_of
from equipoise.kernels.torch_calls import leaves, map_leaves

_QUERIES = {
    *("__get__", "__len__", "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "type"),
    *("is_contiguous", "is_floating_point", "is_complex", "get_device", "element_size", "__hash__"),
}
"""Functions that return properties of a tensor, not its values."""
_TRACING: ContextVar[bool] = ContextVar("tracing", default=False)


@dataclass(frozen=True, eq=False)
class Node:
    """A layer and where its input comes from."""

    layer: Layer | None
    """The layer; None for the input of the network."""
    parents: tuple[int, ...]
    """The nodes whose outputs it takes."""
    shape: torch.Size
    """The shape of its output for one sample."""
    where: str = "this network"
    """The module that calls the function, for messages."""
    is_differentiable: bool = True
    """Whether gradients pass through it: not in a `torch.no_grad()` of the network's own, or after `detach()`."""


@dataclass(frozen=True)
class Trace:
    """The layers of a network in the order in which they run, of which the first is the input."""

    nodes: tuple[Node, ...]
    """The layers."""
    output: int | None
    """The node that is the network's output; None if that is not computed from the input."""
    logits: Tensor
    """The output for the samples that were watched."""
    changes_input: bool
    """Whether the network writes over its input."""

    @property
    def unknown(self) -> Node | None:
        """The first layer that is unknown."""
        return next((node for node in self.nodes if isinstance(node.layer, Unknown)), None)

    def users(self, index: int) -> list[int]:
        """The nodes that take the output of this one."""
        return [i for i, node in enumerate(self.nodes) if index in node.parents]


def trace_of(run: Callable[[Tensor], Tensor], x: Points, module: nn.Module | None = None) -> Trace:
    """Return what `run`, which returns logits, does to the first two samples of `x` (to the first one twice if it is
    alone); it sees a copy of them. With its `module` the nodes can say which layer they are.

    Errors of `run` are raised. What depends on the number of samples is taken as it is for two of them: who reads the
    trace compares it with the network, or knows that samples do not depend on each other.
    """
    learns, token = torch.is_grad_enabled(), _TRACING.set(True)
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(learns):  # which tensors have versions
            few = x[:2] if len(x) > 1 else x[:1].expand(2, *x.shape[1:])
            samples = few.detach().clone().requires_grad_(learns and x.is_floating_point())
            watch, version = _Watch(samples), samples._version
            with watch.modules_of(module), watch:
                logits = run(samples)
    finally:
        _TRACING.reset(token)
    output = watch.node_of(logits) if isinstance(logits, Tensor) else None
    return Trace(watch.finished(), output, logits, samples._version != version)


def is_tracing() -> bool:
    """Whether a network is being traced, which faster ways of computing the same would hide."""
    return _TRACING.get()


class _Watch(TorchFunctionMode):
    """Records what happens to the samples."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.batch, kind = len(x), x.device.type
        self._dtypes = {x.dtype} | ({torch.get_autocast_dtype(kind)} if torch.is_autocast_enabled(kind) else set())
        self.nodes = [Node(None, (), x.shape[1:], is_differentiable=x.requires_grad)]
        # By the identities of the tensors so far: each, its node, and the version at which it was its output.
        self._outputs: dict[int, tuple[Tensor, int, int]] = {id(x): (x, 0, x._version)}
        self._weights: list[tuple[int, Tensor, int]] = []  # of each node, with their versions
        self._running: list[tuple[str, nn.Module]] = []  # modules, the outermost first
        self._blind: str | None = None  # why what follows may be different for other samples
        self.shape = x.shape[1:]  # of the output of the function being recorded, for one sample

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        if name in _QUERIES and not isinstance(out := func(*args, **kwargs), Tensor):
            return out
        if not any(id(value) in self._outputs for value in leaves((args, kwargs))):
            return func(*args, **kwargs)
        found: list[int] = []
        refs, named = map_leaves((args, kwargs), partial(self._ref, found))  # before it changes one in place
        out = func(*args, **kwargs)
        if not found:
            return out
        parents = tuple(found)
        if isinstance(out, Tensor):
            self._record(name, refs, named, parents, out)
        elif self._blind is None:
            several = any(isinstance(value, Tensor) for value in leaves(out))
            self._blind = f"{name}() {'returns more than a tensor' if several else 'looks at values'}"
            self._unknown(self._blind, parents)
        return out

    def _record(self, name: str, refs: Any, named: Any, parents: tuple[int, ...], out: Tensor) -> None:
        try:
            layer, sources = self._layer(name, refs, named, parents, out)
        except UnknownLayerError as error:
            layer, sources = Unknown(str(error)), parents
        if layer is None and (out.requires_grad or not self.nodes[sources[0]].is_differentiable):
            node = sources[0]
        else:
            layer = Reshape(self.shape) if layer is None else layer
            self.nodes.append(Node(layer, sources, self.shape, self._where(), out.requires_grad))
            node = len(self.nodes) - 1
            self._weights += [(node, tensor, _version(tensor)) for tensor in tensors_of(layer)]
        self._outputs[id(out)] = out, node, _version(out)

    def _layer(self, name: str, refs: Any, named: Any, parents: tuple[int, ...], out: Tensor) -> Any:
        """The layer that a call is, and its parents; the layer is None if nothing happens."""
        if self._blind is not None:
            raise UnknownLayerError(self._blind)
        spoilt = next((layer for node in parents if isinstance(layer := self.nodes[node].layer, Unknown)), None)
        if spoilt is not None:
            raise UnknownLayerError(spoilt.reason)
        self.shape = out.shape[1:]
        translate = LAYERS.get(name)
        if translate is None:
            raise UnknownLayerError(f"{name}() is none of the functions that are known")
        if name == "__getitem__" and refs[1:] == (None,) and out.shape == (1, self.batch, *out.shape[2:]):
            self.shape = out.shape[2:]  # the logits get a dimension of members
            return None, parents
        one_each = name == "cat" and out.shape == (len(parents), self.batch, *out.shape[2:])
        stacked = one_each and named.get("dim", (*refs, 0)[1]) in (0, -out.ndim)
        if stacked and all(isinstance(ref, Ref) and ref.shape[0] == self.batch for ref in refs[0]):
            self.shape = out.shape[2:]
            return Members(), parents
        need(out.ndim > 0 and len(out) == self.batch, f"{name}() mixes samples")
        need(out.dtype in self._dtypes, f"{name}() changes the precision to {out.dtype}")
        try:
            layer, *sources = translate(self.shape, *refs, **named)
        except (TypeError, ValueError, IndexError) as error:
            raise UnknownLayerError(f"{name}() is called in a way that is not known ({error})") from error
        known = len(sources) == len(parents) and all(isinstance(source, Ref) for source in sources)
        need(known, f"parameters of {name}() depend on the input")
        return layer, tuple(source.node for source in sources)

    def finished(self) -> tuple[Node, ...]:
        """Return the nodes; a layer whose weights were changed after it had used them is unknown."""
        changed = {node for node, tensor, version in self._weights if _version(tensor) != version}
        reason = Unknown("it changes a weight or a constant after it was used")
        return tuple(replace(node, layer=reason) if i in changed else node for i, node in enumerate(self.nodes))

    def _unknown(self, reason: str, parents: tuple[int, ...]) -> None:
        self.nodes.append(Node(Unknown(reason), parents, torch.Size(), self._where()))

    def _ref(self, found: list[int], value: Any) -> Any:
        node = self.node_of(value) if isinstance(value, Tensor) else None
        if node is None:
            return value
        found.append(node)
        return Ref(node, value.shape[1:])

    def node_of(self, tensor: Tensor) -> int | None:
        """Return the node whose output a tensor is, if any."""
        found = self._outputs.get(id(tensor))
        if found is None:
            return None
        if _version(tensor) != found[2]:
            self._unknown("it uses a tensor that was changed in place through a view of it", (found[1],))
            return len(self.nodes) - 1
        return found[1]

    def _where(self) -> str:
        name, module = self._running[-1] if self._running else ("", None)
        return f"a {type(module).__name__} layer at {name!r}" if name else "this network"

    @contextmanager
    def modules_of(self, module: nn.Module | None) -> Iterator[None]:
        """Track meanwhile which submodules are running."""
        handles: list[Any] = []
        for name, submodule in module.named_modules() if module is not None else ():
            enter = partial(self._enter, name)
            handles.append(submodule.register_forward_pre_hook(enter))
            handles.append(submodule.register_forward_hook(lambda *_: self._running.pop() and None, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, _: Any) -> None:
        self._running.append((name, module))


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; one of inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version
