"""What kind of model somebody's own is, seen from a few predictions, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from equipoise.core.types import Points, Predictive
from equipoise.models.black_box import BlackBox
from equipoise.models.frozen import frozen
from equipoise.models.inference import checked_prediction, is_single_share, isolated, sums_to_one
from equipoise.models.single import Single, as_predictive

_SAMPLES = 64


def recognised(model: "nn.Module | Predictive", x: Points) -> tuple[Predictive, list[str]]:
    """Return a model as a predictive, of probabilities if that is what it returns for the first of the samples `x`, and
    sentences about how its output and its weights are read.

    Raises `EquipoiseError` for a model that does not take such inputs.
    """
    predictive = as_predictive(model)
    if isinstance(predictive, BlackBox):
        gives = {"labels": "labels alone", "probabilities": "probabilities", "logits": "scores"}[predictive.outputs]
        return predictive, [f"{predictive.name} is asked as a function: it gives {gives}, and no gradients."]
    if not isinstance(predictive, Single):
        return predictive, []
    weight = next(predictive.module.parameters(), None)
    x = x[:_SAMPLES] if weight is None else x[:_SAMPLES].to(weight.device)
    copy, notes = frozen(predictive), []
    with isolated(x.device):
        prediction = checked_prediction(copy, x, None)
        output = copy.module(x)
    if isinstance(output, tuple | list):
        notes.append(f"it returns a {type(output).__name__}: its first entry is taken as the logits.")
    elif isinstance(output, Mapping) and not hasattr(output, "logits"):
        notes.append(f"it returns a dictionary: its entry {_taken(output)!r} is taken as the logits.")
    varies = not bool((prediction.logits == prediction.logits[:, :1]).all())
    single, several = is_single_share(prediction), sums_to_one(prediction, False)
    if varies and predictive.outputs == "logits" and (single or several):
        predictive = Single(predictive.module, "probabilities")
        notes.append(
            f"it returns {'one probability' if single else 'probabilities'}, not logits, of which the logarithm is "
            f"taken: give it without its last {'sigmoid' if single else 'softmax'}, as gradients vanish where one is 1."
        )
    elif _columns(output) == 1:
        notes.append("it returns a single logit z, which becomes the logits (-z/2, z/2) of two classes.")
    if weight is not None and weight.dtype in (torch.bfloat16, torch.float16):
        notes.append(
            f"its weights are {str(weight.dtype).removeprefix('torch.')}: predictions are made in that precision, "
            "perturbations and objectives in float32; its rounding hides small changes, which net.float() computes."
        )
    return predictive, notes


def _taken(output: Mapping[Any, Any]) -> Any:
    return "logits" if "logits" in output else next(key for key, value in output.items() if isinstance(value, Tensor))


def _columns(output: Any) -> int:
    return 1 if isinstance(output, Tensor) and output[0].numel() == 1 else 0


def expected_normalisation(module: nn.Module) -> "tuple[tuple[float, ...], tuple[float, ...]] | None":
    """Return the mean and the standard deviation by which a network's own configuration says that its inputs should be
    standardised: `pretrained_cfg` or `default_cfg` of timm, or `image_mean` and `image_std` in a `config`. None if
    there are none, or if they change nothing.
    """
    for layer in module.modules():
        for name, keys in _CONFIGURATIONS:
            config = getattr(layer, name, None)
            mean, std = (config.get(k) if isinstance(config, Mapping) else getattr(config, k, None) for k in keys)
            if _are_numbers(mean) and _are_numbers(std):
                mean, std = tuple(map(float, mean)), tuple(map(float, std))
                if any(mean) or any(s != 1 for s in std):
                    return mean, std
    return None


def _are_numbers(value: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(value, tuple | list) and len(value) > 0 and all(isinstance(n, int | float) for n in value)


_CONFIGURATIONS = (
    ("pretrained_cfg", ("mean", "std")),
    ("default_cfg", ("mean", "std")),
    ("config", ("image_mean", "image_std")),
)
