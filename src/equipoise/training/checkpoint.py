"""Weights and training state on disk: safetensors with JSON beside them, no pickle, written atomically."""

import io
import json
import pickle
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor, nn

from equipoise import nets
from equipoise.core.errors import EquipoiseError, require, require_integer
from equipoise.core.files import read_bytes, reason, write_atomically
from equipoise.core.rng import fold
from equipoise.core.types import Predictive
from equipoise.generators import AdversarialGenerator
from equipoise.models import DeepKernelGP, Ensemble, MonteCarloDropout, Single, as_predictive
from equipoise.models.deep_kernel_gp import DeepKernelGPModule
from equipoise.results.records import Run, load, weights_error

_PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Under which names other programs keep the weights in a larger checkpoint."""
_PREFIXES = ("module.", "_orig_mod.")
"""What wrappers put before the names of weights: data parallelism, compilation."""
_PATIENCE, _PAUSE = 1.0, 0.05  # seconds to wait, and between two looks, while a running training replaces its files


def save_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None = None) -> str:
    """Write tensors, and `state` as JSON in the file's header, and return the SHA-256 of the file. Shared storage is
    written once per name.
    """
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    content = serialise(plain, {"state": json.dumps(state or {})})
    write_atomically(path, content)
    return sha256(content).hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. Raises `EquipoiseError` if the file is missing, truncated or something else."""
    return _parsed(_content(path), path)


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {reason(error)}.") from error


def _parsed(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = parse(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        return tensors, json.loads(header.get("__metadata__", {}).get("state", "{}"))
    except (SafetensorError, ValueError) as error:
        raise EquipoiseError(f"{path} is not a readable safetensors file ({error}); it may be truncated.") from error


def load_weights(module: nn.Module, path: "Path | str") -> None:
    """Load a file of weights into `module`: safetensors, or what `torch.save` wrote of a `state_dict`, also inside a
    larger checkpoint and with the `module.` of a parallel wrapper; nothing in it is run.

    Raises `EquipoiseError` naming what does not fit, and for a file that holds more than weights how to convert it.
    """
    path = Path(path)
    pickled = path.suffix.lower() in _PICKLED
    copy_into(module, _unpickled(path) if pickled else load_tensors(path)[0], str(path))


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The weights in a file of `torch.save`, by the names that the network itself gives them."""
    try:
        found = torch.load(io.BytesIO(_content(path)), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise EquipoiseError(
            f"{path} is no file of plain weights, which alone are read, because anything else may run code. If you "
            f"trust it, convert it:\n"
            f"    found = torch.load({str(path)!r}, weights_only=False)\n"
            f'    torch.save(getattr(found, "state_dict", lambda: found)(), {str(path.with_suffix(".weights.pt"))!r})'
        ) from error
    while isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
        inside = [found[name] for name in _NESTED if isinstance(found.get(name), Mapping)]
        require(
            len(inside) > 0,
            f"{path} holds no weights: expected names with tensors, or {', '.join(_NESTED)} with those inside; it has "
            f"{', '.join(map(str, list(found)[:5])) or 'nothing'}.",
        )
        found = inside[0]
    require(isinstance(found, Mapping), f"{path} holds a {type(found).__name__}: expected a state_dict.")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        while tensors and all(name.startswith(prefix) for name in tensors):
            tensors = part(tensors, prefix)
    return tensors


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a network by names that do not tell whether it was compiled."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in module.state_dict().items()}


def copy_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy weights by name, in place. Raises `EquipoiseError` for missing, extra or misshapen ones."""
    own = plain_state(module)
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    require(
        not missing and not extra,
        f"the weights in {where} are not those of this network: "
        f"missing {', '.join(missing[:3]) or 'none'}, unexpected {', '.join(extra[:3]) or 'none'}.",
    )
    for name, tensor in own.items():
        require(
            tensor.shape == tensors[name].shape,
            f"{where}: {name} has shape {tuple(tensors[name].shape)}, this network needs {tuple(tensor.shape)}.",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of them."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory by `parameter number.name`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, memory in state.items() for k, v in memory.items() if v is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned, each in its parameter's memory layout."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        parameter = parameters[int(number)]
        if value.shape == parameter.shape and value.ndim > 0:
            value = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][name] = value


def build_model(net: Mapping[str, Any]) -> "nn.Module | Predictive":
    """The untrained model that a run's record describes: `name`, `shape`, `classes`, `seed`, `normalize` and `options`
    of `equipoise.nets.build`; an `Ensemble` if `members` > 1, whose first member is that network alone; Monte Carlo
    dropout if `dropout_samples` > 0; and if `inducing` > 0 a `DeepKernelGP` with so many inducing points on the network
    as extractor, which starts from no data yet (`DeepKernelGP.start_from`). Raises `EquipoiseError` for numbers out of
    range, two of these together, and an extractor of features that no Gaussian process follows.
    """
    members, samples, inducing = net.get("members", 1), net.get("dropout_samples", 0), net.get("inducing", 0)
    require_integer("members", members, 1)
    require(samples >= 0, f"dropout_samples = {samples}: expected a number of draws, or 0 for none.")
    require(inducing >= 0, f"inducing = {inducing}: expected a number of inducing points, or 0 for none.")
    require(
        (members > 1) + (samples > 0) + (inducing > 0) <= 1,
        "members, dropout samples and inducing points exclude each other: choose one of them.",
    )
    require(
        inducing > 0 or net["name"] not in nets.extractors(),
        f"net {net['name']!r} returns features, not logits: ask for inducing points of a Gaussian process on them, "
        "such as 20.",
    )

    def one(member: int) -> nn.Module:
        seed = net.get("seed", 0)
        return nets.build(
            net["name"],
            tuple(net["shape"]),
            net["classes"],
            seed=fold(seed, member) if member else seed,
            normalize=_as_tuple(net.get("normalize")),
            **{k: _as_tuple(v) for k, v in net.get("options", {}).items()},
        )

    if inducing:
        extractor = one(0)
        features = getattr(getattr(extractor, "net", extractor), "features", None)
        require(
            isinstance(features, int),
            f"inducing points need a network that returns features, {' or '.join(nets.extractors())}, or one of your "
            f"own that names their number as .features; net {net['name']!r} does not.",
        )
        return DeepKernelGP(DeepKernelGPModule(extractor, net["classes"], inducing, features))
    if members > 1:
        return Ensemble([one(member) for member in range(members)])
    return MonteCarloDropout(one(0), samples) if samples else one(0)


def described(model: "nn.Module | Predictive") -> dict[str, Any] | None:
    """What `build_model` needs to build the model again; None if it is not, or no longer, as `nets.build` made it."""
    predictive = as_predictive(model)
    if not isinstance(predictive, Single | Ensemble | MonteCarloDropout) or predictive.outputs != "logits":
        return None
    networks = list(predictive.module) if isinstance(predictive, Ensemble) else [predictive.module]
    built = nets.how_built(networks[0])
    if built is None:
        return None
    samples = predictive.samples if isinstance(predictive, MonteCarloDropout) else 0
    found = {**built, "members": len(networks), "dropout_samples": samples}
    again = as_predictive(build_model(found)).module
    same = str(again) == str(predictive.module) and [t.shape for t in again.state_dict().values()] == [
        t.shape for t in predictive.module.state_dict().values()
    ]
    return found if same else None


def load_run(
    path: "Path | str", weights: str = "best", device: "torch.device | str" = "cpu"
) -> "tuple[nn.Module | Predictive, Run]":
    """The network (or predictive) of a run directory with its `best` or `last` weights, in eval mode, and its record.

    Raises `EquipoiseError` if the directory is no run, a file is missing or damaged, or the weights are not those whose
    SHA-256 the record names.
    """
    path = Path(path)
    require((path / "run.json").is_file(), f"{path} is not a run directory: it has no run.json.")
    require(weights in ("best", "last"), f"weights = {weights!r}: expected 'best' or 'last'.")
    run, tensors = _recorded(path, f"{weights}.safetensors")
    require(
        "name" in run.net,
        f"{path} was trained from Python on a network of your own, which its record cannot build: in Python build it "
        f"and use equipoise.training.load_weights(net, {str(path / weights) + '.safetensors'!r}); at the command line "
        f"give a function that builds it as package.module:factory, with --checkpoint {path / weights}.safetensors.",
    )
    model = build_model(run.net)
    module = as_predictive(model).module
    copy_into(module, tensors, str(path / f"{weights}.safetensors"))
    module.to(device).eval()
    return model, run


def _recorded(path: Path, name: str) -> tuple[Run, dict[str, Tensor]]:
    """The record of a run, and the tensors of one of its files, which are those that the record names.

    A training that goes on replaces first the one and then the other: then both are read again.
    """
    began = time.monotonic()
    while True:
        run = load(path / "run.json")
        if not isinstance(run, Run):
            raise EquipoiseError(f"{path / 'run.json'} is not the record of a training run.")
        content = _content(path / name)
        if run.weights.get(name) in (None, sha256(content).hexdigest()):
            return run, _parsed(content, path / name)[0]
        if run.status != "running" or time.monotonic() - began > _PATIENCE:
            raise weights_error(path, name)
        time.sleep(_PAUSE)


def load_generator(path: "Path | str") -> AdversarialGenerator:
    """The generator of a run of `r2`: of its directory, or of the file `generator.safetensors` in it.

    Raises `EquipoiseError` if the file is missing, damaged, or of something else.
    """
    path = Path(path)
    file = path / "generator.safetensors" if path.is_dir() else path
    if (path / "run.json").is_file():
        _recorded(path, file.name)
    tensors, config = load_tensors(file)
    require(
        config.get("kind") == AdversarialGenerator.kind,
        f"{file} holds no adversarial generator: give a run of r2, or its generator.safetensors.",
    )
    generator = AdversarialGenerator.from_config(config)
    copy_into(generator, tensors, str(file))
    return generator


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list) else value
