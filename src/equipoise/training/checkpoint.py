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
from safetensors.torch import load, save
from torch import Tensor, nn

from equipoise import nets
from equipoise.core.checks import checked_call
from equipoise.core.errors import EquipoiseError, kind_of, require, require_integer
from equipoise.core.files import read_bytes, reason, write_atomically
from equipoise.core.rng import fold
from equipoise.core.types import Predictive
from equipoise.generators import AdversarialGenerator
from equipoise.models import DeepKernelGP, Ensemble, MonteCarloDropout, Single, as_predictive
from equipoise.models.deep_kernel_gp import DeepKernelGPModule
from equipoise.pretrained import WEIGHTS, find, hint
from equipoise.results.records import Run, weights_error
from equipoise.results.records import load as load_record

_PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")  # in other programs' checkpoints
_PREFIXES = ("module.", "_orig_mod.", "net.", "model.", "network.")
"""Prefixes of weights' names: by data parallelism, by compilation, and by classes around a network."""
_TIMEOUT, _PAUSE = 1.0, 0.05  # seconds to wait, and between two attempts, while a running training replaces its files


def save_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None = None) -> str:
    """Write tensors, and `state` as JSON in the file's header, atomically; return the SHA-256 of the file."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    content = save(plain, {"state": json.dumps(state or {})})
    write_atomically(path, content)
    return sha256(content).hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises `EquipoiseError` if it is missing, truncated or of another format."""
    return _parse(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise EquipoiseError(f"cannot read {path}: {reason(error)}.") from error


def _parse(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        return tensors, json.loads(header.get("__metadata__", {}).get("state", "{}"))
    except (SafetensorError, ValueError) as error:
        raise EquipoiseError(f"{path} is not a readable safetensors file ({error}); it may be truncated.") from error


def load_weights(module: nn.Module, path: "Path | str") -> None:
    """Load a file of weights into `module`: safetensors, or a `state_dict` written by `torch.save`, also inside a
    larger checkpoint, and with a prefix of all names, such as the `module.` of a parallel wrapper. No code in the file
    is run.

    Raises `EquipoiseError` for weights of another network, and for a file that holds more than weights, with the way
    to convert it.
    """
    path = Path(path)
    pickled = path.suffix.lower() in _PICKLED
    tensors = _load_pickled(path) if pickled else load_tensors(path)[0]
    own = plain_state(module).keys()
    for prefix in _PREFIXES:
        while tensors and not own <= tensors.keys() and all(name.startswith(prefix) for name in tensors):
            tensors = with_prefix(tensors, prefix)
    copy_into(module, tensors, str(path))


def _load_pickled(path: Path) -> dict[str, Tensor]:
    """The weights in a file of `torch.save`."""
    try:
        content = torch.load(io.BytesIO(_read(path)), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        converted = str(path.with_suffix(".weights.pt"))
        raise EquipoiseError(
            f"{path} is no file of plain weights, and no other pickles are read, because they may run code. If you "
            f"trust it, convert it:\n"
            f"    checkpoint = torch.load({str(path)!r}, weights_only=False)\n"
            f'    torch.save(getattr(checkpoint, "state_dict", lambda: checkpoint)(), {converted!r})'
        ) from error
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        nested = [content[name] for name in _NESTED if isinstance(content.get(name), Mapping)]
        require(
            len(nested) > 0,
            f"{path} holds no weights: expected names with tensors, or {', '.join(_NESTED)} with those inside; it has "
            f"{', '.join(map(str, list(content)[:5])) or 'nothing'}.",
        )
        content = nested[0]
    require(isinstance(content, Mapping), f"{path} holds {kind_of(content)}: expected a state_dict.")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a network, by the names that it has when it is not compiled."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in module.state_dict().items()}


def copy_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights by name, in place. Raises `EquipoiseError`, naming their `source`, if names or shapes differ."""
    own = plain_state(module)
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    require(
        not missing and not extra,
        f"the weights in {source} are not those of this network: "
        f"missing {', '.join(missing[:3]) or 'none'}, unexpected {', '.join(extra[:3]) or 'none'}.",
    )
    for name, tensor in own.items():
        require(
            tensor.shape == tensors[name].shape,
            f"{source}: {name} has shape {tuple(tensors[name].shape)}, this network needs {tuple(tensor.shape)}.",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, which is removed."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, named `PARAMETER_NUMBER.NAME`."""
    states = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v) for i, state in states.items() for k, v in state.items() if v is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned, each tensor in its parameter's memory layout."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        parameter = parameters[int(number)]
        if value.shape == parameter.shape and value.ndim > 0:
            value = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][name] = value


def build_model(net: Mapping[str, Any]) -> "nn.Module | Predictive":
    """Build the untrained model that a run's record describes.

    `name`, `shape`, `classes`, `seed`, `normalize` and `options` are arguments of `equipoise.nets.build`. With
    `members` > 1 the model is an `Ensemble`, whose first member is that network; with `dropout_samples` > 0 Monte Carlo
    dropout; with `inducing` > 0 a `DeepKernelGP` with that many inducing points and the network as extractor, not yet
    initialised from data (`DeepKernelGP.start_from`). Raises `EquipoiseError` for numbers out of range, two of these
    together, and a network whose outputs do not match.
    """
    members, samples, inducing = net.get("members", 1), net.get("dropout_samples", 0), net.get("inducing", 0)
    require_integer("members", members, 1)
    require(samples >= 0, f"dropout_samples = {samples}: expected a number of samples, or 0 for none.")
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
    if inducing:
        extractor = _build_member(net, 0)
        features = getattr(getattr(extractor, "net", extractor), "features", None)
        require(
            isinstance(features, int),
            f"inducing points need a network that returns features, {' or '.join(nets.extractors())}, or one of your "
            f"own that names their number as .features; net {net['name']!r} does not.",
        )
        return DeepKernelGP(DeepKernelGPModule(extractor, net["classes"], inducing, features))
    if members > 1:
        return Ensemble([_build_member(net, member) for member in range(members)])
    return MonteCarloDropout(_build_member(net, 0), samples) if samples else _build_member(net, 0)


def _build_member(net: Mapping[str, Any], member: int) -> nn.Module:
    seed = net.get("seed", 0)
    return nets.build(
        net["name"],
        tuple(net["shape"]),
        net["classes"],
        seed=fold(seed, member) if member else seed,
        normalize=_as_tuple(net.get("normalize")),
        **{k: _as_tuple(v) for k, v in net.get("options", {}).items()},
    )


def described(model: "nn.Module | Predictive") -> dict[str, Any] | None:
    """The arguments with which `build_model` builds the model again; None if it is not, or no longer, as
    `nets.build` made it.
    """
    predictive = as_predictive(model)
    if not isinstance(predictive, Single | Ensemble | MonteCarloDropout) or predictive.outputs != "logits":
        return None
    networks = list(predictive.module) if isinstance(predictive, Ensemble) else [predictive.module]
    built = nets.how_built(networks[0])
    if built is None:
        return None
    samples = predictive.samples if isinstance(predictive, MonteCarloDropout) else 0
    net = {**built, "members": len(networks), "dropout_samples": samples}
    first, second = predictive.module, as_predictive(build_model(net)).module
    shapes = [[tensor.shape for tensor in module.state_dict().values()] for module in (first, second)]
    return net if str(first) == str(second) and shapes[0] == shapes[1] else None


@checked_call()
def load_run(
    path: "Path | str", weights: str = "best", device: "torch.device | str" = "cpu"
) -> "tuple[nn.Module | Predictive, Run]":
    """Load the network (or predictive) of a run directory with its `best` or `last` weights, in eval mode, and its
    record; or of a published model, which has one set of weights: `path` is then its folder, or the name of one that
    comes with equipoise, such as `digits/udp-0.15`.

    Raises `EquipoiseError` if there is no such run or model, a file is missing or damaged, or the SHA-256 of the
    weights is not the recorded one.
    """
    target, path = path, find(path)
    require((path / "run.json").is_file(), f"{path} is not a run directory: it has no run.json{hint(target)}.")
    require(weights in ("best", "last"), f"weights = {weights!r}: expected 'best' or 'last'.")
    published = (path / WEIGHTS).is_file()
    require(not published or weights == "best", f"{target} has one set of weights: leave out {weights!r}.")
    run, tensors = _load_recorded(path, WEIGHTS if published else f"{weights}.safetensors")
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


def _load_recorded(path: Path, name: str) -> tuple[Run, dict[str, Tensor]]:
    """Load the record of a run, and the tensors of one of its files, whose SHA-256 is checked.

    A running training replaces first the one and then the other: then both are read again.
    """
    deadline = time.monotonic() + _TIMEOUT
    while True:
        run = load_record(path / "run.json")
        if not isinstance(run, Run):
            raise EquipoiseError(f"{path / 'run.json'} is not the record of a training run.")
        content = _read(path / name)
        if run.weights.get(name) in (None, sha256(content).hexdigest()):
            return run, _parse(content, path / name)[0]
        if run.status != "running" or time.monotonic() > deadline:
            raise weights_error(path, name)
        time.sleep(_PAUSE)


def load_generator(path: "Path | str") -> AdversarialGenerator:
    """Load the generator of a run of `r2`, from its directory or from the file `generator.safetensors` in it.

    Raises `EquipoiseError` if the file is missing, damaged, or holds no generator.
    """
    path = Path(path)
    file = path / "generator.safetensors" if path.is_dir() else path
    if (path / "run.json").is_file():
        _load_recorded(path, file.name)
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
