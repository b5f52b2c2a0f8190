"""Private copies of models, so that attacks leave the caller's model untouched.

`frozen(predictive, mode)` copies the *structure* of a model (its modules, containers and hooks) and shares its tensors,
detached. The copy has its own modes, hooks and buffers: several threads can attack one model, a backward pass that
recomputes (gradient checkpointing) finds the weights it started from, and an exception leaves nothing to restore.
"""

import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.core.errors import kind_of, require
from equipoise.core.rng import Streams
from equipoise.core.types import Answers, Mode, Predict, Predictive, Weights, answers_of

Replace = Callable[[Tensor], Tensor]

ATOMS = frozenset([int, float, str, bool, type(None), bytes, complex, torch.dtype, torch.device, torch.Size])
"""Classes of values that refer to nothing and never change."""
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_MODULE_DICTS = {name for name, value in vars(nn.Module()).items() if type(value) in (dict, OrderedDict)}
"""The dictionaries that every module has: of its parameters, buffers, submodules and hooks."""


def cut(tensor: Tensor) -> Tensor:
    """Return the tensor without its graph, sharing its memory; a tensor of `torch.inference_mode()`, which autograd
    cannot use, is copied.
    """
    return tensor.clone() if tensor.is_inference() else tensor.detach()


@dataclass(frozen=True, eq=False)
class Frozen:
    """A predictive on a private copy of a model, whose parameters are constants."""

    predictive: Predictive
    """A predictive of the original's class, on the copy."""
    original: Predictive
    """The caller's predictive, which is never changed."""
    random: bool = False
    """Whether two calls differ, so that the model has to be evaluated several times."""

    @property
    def module(self) -> nn.Module:
        """The copy of the network."""
        return self.predictive.module

    @property
    def outputs(self) -> str:
        """Output of the network: `logits` or `probabilities`."""
        return getattr(self.predictive, "outputs", "logits")

    @property
    def answers(self) -> Answers:
        """What the model gives to an attack: gradients, unless it is a `BlackBox`."""
        return answers_of(self.predictive)

    def draw(self, streams: Streams | None = None, weights: Weights | None = None) -> Predict:
        """The prediction function of the copy."""
        return self.predictive.draw(streams) if weights is None else self.predictive.draw(streams, weights)


def frozen(predictive: Predictive, mode: Mode = "eval", *, weights: Replace = cut) -> Frozen:
    """Return a private copy of a predictive, in `mode`, whose parameters are constants.

    `weights` maps the model's parameters to the copy's, which by default share memory. Buffers are copied in eval mode
    and shared in train mode: batch-norm then updates the running statistics of the model itself, as in any training
    pass. Recurrent layers on CUDA, which are differentiable in train mode only, stay in train mode, without dropout. A
    copy in train mode of a frozen predictive is one of its original.
    """
    original = predictive.original if isinstance(predictive, Frozen) else predictive
    source = predictive.predictive if isinstance(predictive, Frozen) and mode == "eval" else original
    module = source.module
    own: dict[int, Tensor] = {id(p): weights(p) for p in module.parameters()}
    for buffer in module.buffers():
        own.setdefault(id(buffer), cut(buffer).clone() if mode == "eval" else buffer)
    copy = _Copier(module, own).predictive(source)
    copy.module.train(mode == "train")
    for layer in copy.module.modules():
        if isinstance(layer, nn.RNNBase) and mode == "eval" and next(layer.parameters()).is_cuda:
            layer.training, layer.dropout = True, 0.0
    if source is original and any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters()):
        copy.module.register_forward_pre_hook(_in_own_precision)
    return Frozen(copy, original, isinstance(predictive, Frozen) and predictive.random)


def _in_own_precision(module: nn.Module, args: Any) -> Any:
    """Give a half-precision model inputs of its precision; attacks keep float32, where rounding stays in the ball."""
    dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def called_with(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a copy of the module's structure with these parameters and buffers in place of its own, under all names of
    shared ones. As `torch.func.functional_call`, but without changing the module meanwhile.
    """
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return _Copier(module, {id(own): tensors[name] for name, own in named if name in tensors}).copy(module)


class _Copier:
    """Copies modules with their lists, dictionaries and sets, and everything that refers to a module or to a replaced
    tensor: other containers, bound methods, closures, small objects. Everything else (data sets, trainers, locks, ...)
    is shared.
    """

    def __init__(self, root: nn.Module, tensors: dict[int, Tensor]) -> None:
        self._tree = {id(module) for module in root.modules()}
        self._copies: dict[int, Any] = dict(tensors)
        self._originals: list[Any] = []  # kept alive, so that no id is used twice

    def predictive(self, predictive: Predictive) -> Predictive:
        """Return the copy of a predictive of any class."""
        require(
            hasattr(predictive, "__dict__"),
            f"{kind_of(predictive)} hides its module: give the class a __dict__ (no __slots__).",
        )
        copy: Any = self._object(predictive)
        if copy.module is predictive.module:  # an attribute of the class, say
            copy.__dict__["module"] = self.copy(predictive.module)
        require(
            copy.module is not predictive.module,
            f"{kind_of(predictive)} has a module that cannot be replaced by a copy: keep it as an attribute.",
        )
        return copy

    def copy(self, value: Any) -> Any:
        """Return the copy of a value, or the value itself if it refers to nothing that is copied."""
        kind: Any = type(value)
        if kind in ATOMS:
            return value
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, Tensor | torch.jit.ScriptModule):
            return value
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, dict):
            return self._dict(value)
        if kind in (list, tuple, set, frozenset):
            items = [self.copy(item) for item in value]
            return self._unless_same(value, items, list(value), lambda: kind(items))
        if kind is MethodType:
            owner = self.copy(value.__self__)
            return self._unless_same(value, [owner], [value.__self__], lambda: MethodType(value.__func__, owner))
        if kind is functools.partial:
            old = [value.func, value.args, value.keywords]
            new = [self.copy(item) for item in old]
            return self._unless_same(value, new, old, lambda: functools.partial(new[0], *new[1], **new[2]))
        if kind is FunctionType:
            return self._closure(value) if value.__closure__ else value
        return self._object(value) if self._refers_to_module(value) else value

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
        if compiled_from is not None:  # torch.compile would compile every copy anew
            return self._remember(module, self.copy(compiled_from))
        self._tree.add(id(module))
        return self._object(module)

    def _object(self, value: Any) -> Any:
        copy = self._remember(value, object.__new__(type(value)))
        attributes, copy_of = {}, self._private if isinstance(value, nn.Module) else self.copy
        for name in sorted(value.__dict__, key=_MODULE_DICTS.__contains__):  # attributes first: hooks may write to them
            old = value.__dict__[name]
            if name in _MODULE_DICTS:  # always a new dictionary: a hook of the copy is none of the original
                attributes[name] = self._remember(old, _dict_like(old, {key: self.copy(v) for key, v in old.items()}))
            else:
                attributes[name] = copy_of(old)
        copy.__dict__.update({name: attributes[name] for name in value.__dict__})
        copy.__dict__.pop("_compiled_call_impl", None)
        return copy

    def _private(self, value: Any) -> Any:
        """The copy of an attribute of a module; mutable containers are always copied."""
        kind: Any = type(value)
        if kind in ATOMS or id(value) in self._copies or not isinstance(value, dict | list | set):
            return self.copy(value)
        if isinstance(value, dict):
            return self._remember(value, _dict_like(value, {key: self._private(v) for key, v in value.items()}))
        return self._remember(value, kind(map(self._private, value))) if kind in (list, set) else self.copy(value)

    def _dict(self, value: Any) -> Any:
        new = {key: self.copy(inner) for key, inner in value.items()}
        return self._unless_same(value, list(new.values()), list(value.values()), lambda: _dict_like(value, new))

    def _closure(self, function: Any) -> Any:
        """The copy of a function with a closure, such as a hook that writes to a module."""
        self._remember(function, function)  # it may hold itself
        old = [_content(cell) for cell in function.__closure__]
        new = [self.copy(value) for value in old]

        def make() -> FunctionType:
            cells = tuple(CellType(value) for value in new)
            copy = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
            copy.__defaults__, copy.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
            return copy

        return self._unless_same(function, new, old, make)

    def _refers_to_module(self, value: Any) -> bool:
        """Whether a plain object has a module of the tree as an attribute, or in a container that is one."""
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is not dict or isinstance(value, type | ModuleType):
            return False
        return any(map(self._holds_module, attributes.values()))

    def _holds_module(self, value: Any) -> bool:
        values = tuple(value.values()) if isinstance(value, dict) else value
        values = values if isinstance(values, list | tuple) else (values,)
        return any(id(item) in self._tree or isinstance(item, Predictive) for item in values)


def _dict_like(like: Any, items: dict[Any, Any]) -> Any:
    """A dictionary of the class of `like` with these items."""
    kind: Any = type(like)
    if kind in (dict, OrderedDict):
        return kind(items)
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
