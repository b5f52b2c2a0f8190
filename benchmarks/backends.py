"""Time of the gradient of the cross-entropy with respect to the images, by equipoise and by other backends, interleaved
in one process. See README.md.
"""

import argparse
import os
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # runs from a checkout that is not installed

from training_step import Report, images, timed, warmed_up

from equipoise.attacks.execution import frozen_model, value_and_gradient
from equipoise.core.rng import Streams
from equipoise.kernels.native import way
from equipoise.losses.objectives import cross_entropy
from equipoise.models import as_predictive

Gradient = Callable[[], Tensor]
"""The gradient of the sum of the cross-entropies, one row per image."""


def constant(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    return deepcopy(model).to(dtype).eval().requires_grad_(False)


def by_torch(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    at = x.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)[0]


def ours(model: nn.Module, x: Tensor, y: Tensor) -> Gradient:
    """As an attack asks for it, with the look at what the network does."""
    context = frozen_model(as_predictive(model), x)
    predict = context.__enter__()(Streams.of(0, torch.arange(len(x))))
    return lambda: value_and_gradient(cross_entropy, predict, x, None, y, at_once=0)[1]


def default_layout(model: nn.Module, x: Tensor, y: Tensor) -> Gradient:
    still = constant(model)
    return lambda: by_torch(still, x, y)


def channels_last(model: nn.Module, x: Tensor, y: Tensor) -> Gradient:
    still, x = constant(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return lambda: by_torch(still, x, y)


def bf16(model: nn.Module, x: Tensor, y: Tensor) -> Gradient:
    still, x = constant(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    def gradient() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return by_torch(still, x, y)

    return gradient


def compiled(model: nn.Module, x: Tensor, y: Tensor) -> Gradient:
    fast = torch.compile(constant(model))
    return lambda: by_torch(fast, x, y)


def jax(model: nn.Module, x: Tensor, y: Tensor) -> Gradient:
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={torch.get_num_threads() > 1}".lower())
    import jax
    import jax.numpy as jnp
    from jax import lax

    layers = [
        (type(layer), [jnp.asarray(weight.detach().numpy()) for weight in layer.parameters()], layer)
        for layer in (*model.features, *model.classifier)
    ]

    def larger(first: Any, second: Any) -> Any:
        return jnp.where(first >= second, first, second)

    def loss(x: Any, y: Any) -> Any:
        for kind, weights, layer in layers:
            if kind is nn.Conv2d:
                padding = [(side, side) for side in layer.padding]
                x = lax.conv_general_dilated(x, weights[0], layer.stride, padding) + weights[1][:, None, None]
            elif kind is nn.MaxPool2d:
                x = larger(x[..., 0::2], x[..., 1::2])  # takes a third less than `reduce_window`
                x = larger(x[..., 0::2, :], x[..., 1::2, :])
            elif kind is nn.Linear:
                x = x @ weights[0].T + weights[1]
            else:
                x = x.reshape(len(x), -1) if kind is nn.Flatten else jax.nn.relu(x)
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).sum()

    gradient, at, labels = jax.jit(jax.grad(loss)), jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    return lambda: torch.from_dlpack(gradient(at, labels).block_until_ready())


class WrittenByHand(nn.Module):
    """The gradient of a LeNet as a forward pass: of rectifiers by masks, of poolings by comparing each window with its
    maximum, of convolutions by transposed convolutions.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([*model.features, *model.classifier])

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        given = [x]
        for layer in self.layers:
            given.append(layer(given[-1]))
        grad = F.softmax(given[-1], 1) - target
        for layer, before, after in list(zip(self.layers, given[:-1], given[1:], strict=True))[::-1]:
            if isinstance(layer, nn.Conv2d):
                grad = F.conv_transpose2d(grad, layer.weight, stride=layer.stride, padding=layer.padding)
            elif isinstance(layer, nn.Linear):
                grad = grad @ layer.weight
            elif isinstance(layer, nn.ReLU):
                grad = grad * (after > 0).to(grad.dtype)
            elif isinstance(layer, nn.Flatten):
                grad = grad.reshape(before.shape)
            else:
                grad = self.unpooled(grad, before, after)
        return grad

    @staticmethod
    def unpooled(grad: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """To the first of equal pixels of each 2×2 window, as PyTorch does."""
        windows = F.pixel_unshuffle(before, 2).unflatten(1, (-1, 4))
        hits = (windows == after.unsqueeze(2)).to(grad.dtype)
        first = hits * (hits.cumsum(2) == 1).to(grad.dtype)
        return F.pixel_shuffle((first * grad.unsqueeze(2)).flatten(1, 2), 2)


def openvino(model: nn.Module, x: Tensor, y: Tensor) -> Gradient:
    """OpenVINO differentiates nothing and converts no backward pass: its graph is the gradient written by hand."""
    import openvino as ov

    target, still = F.one_hot(y, 10).float(), WrittenByHand(constant(model))
    with torch.no_grad():
        graph = ov.convert_model(still, example_input=(x, target))
    graph.reshape({graph.inputs[0]: list(x.shape), graph.inputs[1]: list(target.shape)})
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    run = ov.Core().compile_model(graph, "CPU", options)
    inputs = [x.numpy(), target.numpy()]
    return lambda: torch.from_numpy(run(inputs)[0])


BACKENDS: dict[str, Callable[[nn.Module, Tensor, Tensor], Gradient]] = {
    "equipoise": ours,
    "PyTorch, default layout": default_layout,
    "PyTorch, channels-last": channels_last,
    "PyTorch, channels-last, bf16": bf16,
    "torch.compile": compiled,
    "JAX": jax,
    "OpenVINO, gradient written by hand": openvino,
}


def prepared(names: list[str], model: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, Gradient], dict[str, str]]:
    """The backends that are there, each run once, and why the others are not."""
    found, absent = {}, {}
    for name in names:
        try:
            gradient = BACKENDS[name](model, x, y)
            gradient()
        except ModuleNotFoundError as error:
            absent[name] = f"not installed ({error.name})"
        except Exception as error:  # one that does not work here is listed as such
            absent[name] = f"does not work here ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
        else:
            found[name] = gradient
    return found, absent


def measure(names: list[str], batch: int, repeats: int) -> dict[str, Any]:
    """Compare every gradient with PyTorch's in float64, then time them in turns."""
    x, y = images("lenet", batch, "cpu")
    model = warmed_up("lenet", x, y, 60)
    exact = by_torch(constant(model, torch.float64), x.double(), y)
    backends, absent = prepared(names, model, x, y)
    off = {name: float((run().double() - exact).abs().max() / exact.abs().max()) for name, run in backends.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in backends}
    order = list(backends)
    for repeat in range(-2, repeats):
        order = order[1:] + order[:1]
        for name in order:
            seconds = timed(backends[name], "cpu")
            if repeat >= 0:  # the first rounds only warm up
                times[name].append(seconds)
    return {
        "batch": batch,
        "wall_ms": {name: 1e3 * median(wall for wall, _ in rounds) for name, rounds in times.items()},
        "cpu_ms": {name: 1e3 * median(cpu for _, cpu in rounds) for name, rounds in times.items()},
        "max_relative_difference": off,
        "absent": absent,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that are loaded."""
    loaded = {name: sys.modules.get(name) for name in ("torch", "jax", "openvino")}
    return {name: module.__version__ for name, module in loaded.items() if module is not None}


def described(result: dict[str, Any]) -> list[str]:
    lines = [f"LeNet, batch {result['batch']}", f"{'':36}{'cpu ms':>8}{'wall ms':>9}{'ratio':>7}   max difference"]
    cpu = result["cpu_ms"]
    for name, ms in cpu.items():
        ratio = ms / cpu["equipoise"] if "equipoise" in cpu else float("nan")
        off = result["max_relative_difference"][name]
        lines.append(f"{name:36}{ms:8.2f}{result['wall_ms'][name]:9.2f}{ratio:7.2f}   {off:.1e}")
    lines += [f"{name:36}{reason}" for name, reason in result["absent"].items()]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256, help="images (default: 256)")
    parser.add_argument("--repeats", type=int, default=31, help="timed rounds (default: 31)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    parser.add_argument("--only", nargs="+", choices=list(BACKENDS), default=list(BACKENDS), help="backends")
    parser.add_argument("--out", type=Path, help="write the results to this path, as NAME.json and NAME.txt")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = Report("cpu", f"kernels {way() or 'of PyTorch'}")
    result = measure(args.only, args.batch, args.repeats)
    report.add(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    for line in described(result):
        report.add(line)
    report.write(args.out, {"gradient": result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
