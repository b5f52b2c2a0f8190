"""A private copy of a model for an attack to work on, so that nothing of the caller's is ever touched.

`frozen(predictive, mode)` copies the *structure* of a model (its modules, containers and hooks) and shares its tensors,
cut from the graph. The copy has modes, hooks and buffers of its own: several threads can attack one model, a backward
pass that recomputes (gradient checkpointing) finds the weights it started from, and an exception leaves nothing behind.
"""

import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.core.errors import require
from equipoise.core.rng import Streams
from equipoise.core.types import Mode, Predict, Predictive, Weights

Replace = Callable[[Tensor], Tensor]

_ATOMS = (int, float, str, bool, type(None), bytes, complex, torch.dtype, torch.device, torch.Size)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_OWN = {name for name, value in vars(nn.Module()).items() if type(value) in (dict, OrderedDict)}
"""The dictionaries that every module has: of its parameters, buffers, parts and hooks."""


def cut(tensor: Tensor) -> Tensor:
    """Return the tensor without its graph, sharing its memory; one made under `torch.inference_mode()`, which autograd
    cannot use, is copied.
    """
    return tensor.clone() if tensor.is_inference() else tensor.detach()


@dataclass(frozen=True, eq=False)
class Frozen:
    """A predictive on a private copy of a model: its parameters are constants, its mode and hooks are its own."""

    predictive: Predictive
    """The same kind of predictive as the original, on the copy."""
    original: Predictive
    """The caller's own, which is never touched."""
    random: bool = False
    """Whether two calls differ, so that it has to be judged by several."""

    @property
    def module(self) -> nn.Module:
        """The copy of the network."""
        return self.predictive.module

    @property
    def outputs(self) -> str:
        """What the network returns: `logits` or `probabilities`."""
        return getattr(self.predictive, "outputs", "logits")

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """The prediction function of the copy."""
        return self.predictive.draw(streams) if weights is None else self.predictive.draw(streams, weights)


def frozen(predictive: Predictive, mode: Mode = "eval", *, weights: Replace = cut) -> Frozen:
    """Return a private copy of a predictive, in `mode`, whose parameters are constants.

    `weights` makes the copy's parameters of the model's own: by default they share memory. Buffers are copied in eval
    mode and shared in train mode: batch-norm then updates the running statistics of the model itself, as in any
    training pass. Recurrent layers on CUDA, whose kernels differentiate in train mode only, stay in it, without their
    dropout. Of a frozen predictive a copy in train mode is one of the original.
    """
    original = predictive.original if isinstance(predictive, Frozen) else predictive
    source = predictive.predictive if isinstance(predictive, Frozen) and mode == "eval" else original
    module = source.module
    own: dict[int, Tensor] = {id(p): weights(p) for p in module.parameters()}
    for buffer in module.buffers():
        own.setdefault(id(buffer), cut(buffer).clone() if mode == "eval" else buffer)
    copy = _Copier(module, own).predictive(source)
    copy.module.train(mode == "train")
    for part in copy.module.modules():
        if isinstance(part, nn.RNNBase) and mode == "eval" and next(part.parameters()).is_cuda:
            part.training, part.dropout = True, 0.0
    if source is original and any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters()):
        copy.module.register_forward_pre_hook(_in_its_precision)
    return Frozen(copy, original, isinstance(predictive, Frozen) and predictive.random)


def _in_its_precision(module: nn.Module, args: Any) -> Any:
    """Points stay in float32, where rounding does not leave the ball; a half-precision model sees them in its own."""
    dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def called_with(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a copy of the module's structure that has these parameters and buffers in place of its own, also under the
    other names of what has several; the rest is shared. As `torch.func.functional_call`, without touching the module.
    """
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return _Copier(module, {id(own): tensors[name] for name, own in named if name in tensors}).copy(module)


class _Copier:
    """Copies modules with the lists, dictionaries and sets among their attributes, and what leads to a module or to a
    tensor with a replacement: other containers, bound methods, closures, small objects. Everything else (data sets,
    trainers, locks, what a hook of the caller's records into, ...) is shared.
    """

    def __init__(self, root: nn.Module, tensors: dict[int, Tensor]) -> None:
        self._tree = {id(module) for module in root.modules()}
        self._copies: dict[int, Any] = dict(tensors)
        self._originals: list[Any] = []  # kept alive, so that no id is used twice

    def predictive(self, predictive: Predictive) -> Predictive:
        """Return the copy of a predictive, whatever its class."""
        require(
            hasattr(predictive, "__dict__"),
            f"a {type(predictive).__name__} keeps its module out of reach: give the class a __dict__ (no __slots__).",
        )
        copy: Any = self._object(predictive)
        if copy.module is predictive.module:  # an attribute of the class, say
            copy.__dict__["module"] = self.copy(predictive.module)
        require(
            copy.module is not predictive.module,
            f"a {type(predictive).__name__} has a module that cannot be replaced by a copy: keep it as an attribute.",
        )
        return copy

    def copy(self, value: Any) -> Any:
        """Return the copy of a value, or the value itself where it leads to nothing that is copied."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        kind: Any = type(value)
        if kind in _ATOMS or isinstance(value, Tensor | torch.jit.ScriptModule):
            return value
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, dict):
            return self._dict(value)
        if kind in (list, tuple, set, frozenset):
            inner = [self.copy(one) for one in value]
            return self._unless_same(value, inner, list(value), lambda: kind(inner))
        if kind is MethodType:
            owner = self.copy(value.__self__)
            return self._unless_same(value, [owner], [value.__self__], lambda: MethodType(value.__func__, owner))
        if kind is functools.partial:
            old = [value.func, value.args, value.keywords]
            new = [self.copy(one) for one in old]
            return self._unless_same(value, new, old, lambda: functools.partial(new[0], *new[1], **new[2]))
        if kind is FunctionType:
            return self._closure(value) if value.__closure__ else value
        return self._object(value) if self._leads_back(value) else value

    def _remember(self, value: Any, copy: Any) -> Any:
        self._copies[id(value)] = copy
        self._originals.append(value)
        return copy

    def _unless_same(self, value: Any, new: list[Any], old: list[Any], make: Callable[[], Any]) -> Any:
        same = all(a is b for a, b in zip(new, old, strict=True))
        return value if same else self._remember(value, make())

    def _module(self, module: Any) -> Any:
        if isinstance(module, _WRAPPERS):
            return self._remember(module, self.copy(module.module))
        compiled_from = module.__dict__.get("_modules", {}).get("_orig_mod")
        if compiled_from is not None:  # of torch.compile, which would compile every copy anew
            return self._remember(module, self.copy(compiled_from))
        self._tree.add(id(module))
        return self._object(module)

    def _object(self, value: Any) -> Any:
        copy = self._remember(value, object.__new__(type(value)))
        copied = {}
        for name in sorted(value.__dict__, key=_OWN.__contains__):  # attributes first: hooks may write to them
            inner = value.__dict__[name]
            if name in _OWN:  # always a new one: a hook of the copy is none of the original
                new = _filled(inner, {key: self.copy(one) for key, one in inner.items()})
                copied[name] = self._remember(inner, new)
            else:
                copied[name] = self._private(inner) if isinstance(value, nn.Module) else self.copy(inner)
        copy.__dict__.update({name: copied[name] for name in value.__dict__})
        copy.__dict__.pop("_compiled_call_impl", None)
        return copy

    def _private(self, value: Any) -> Any:
        """The copy of an attribute of a module: what can be changed in place is always a new one."""
        kind: Any = type(value)
        if id(value) in self._copies or not isinstance(value, dict | list | set):
            return self.copy(value)
        if isinstance(value, dict):
            return self._remember(value, _filled(value, {key: self._private(one) for key, one in value.items()}))
        return self._remember(value, kind(map(self._private, value))) if kind in (list, set) else self.copy(value)

    def _dict(self, value: Any) -> Any:
        new = {key: self.copy(inner) for key, inner in value.items()}
        return self._unless_same(value, list(new.values()), list(value.values()), lambda: _filled(value, new))

    def _closure(self, function: Any) -> Any:
        """A function that holds a module, such as a hook that writes to it; the same on the copy."""
        self._remember(function, function)  # it may hold itself
        old = [_content(cell) for cell in function.__closure__]
        new = [self.copy(one) for one in old]

        def make() -> FunctionType:
            cells = tuple(CellType(one) for one in new)
            again = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
            again.__defaults__, again.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
            return again

        return self._unless_same(function, new, old, make)

    def _leads_back(self, value: Any) -> bool:
        """Whether a plain object holds a module of the tree, itself or in a container of its own."""
        held = getattr(value, "__dict__", None)
        if type(held) is not dict or isinstance(value, type | ModuleType):
            return False
        return any(map(self._holds, held.values()))

    def _holds(self, value: Any) -> bool:
        values = tuple(value.values()) if isinstance(value, dict) else value
        values = values if isinstance(values, list | tuple) else (values,)
        return any(id(one) in self._tree or isinstance(one, Predictive) for one in values)


def _filled(like: Any, items: dict[Any, Any]) -> Any:
    """A dictionary of the same kind with these items."""
    kind: Any = type(like)
    copy = kind.__new__(kind)
    if isinstance(like, defaultdict):
        copy.default_factory = like.default_factory
    copy.update(items)
    return copy


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet bound
        return None
