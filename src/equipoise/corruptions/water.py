"""A film of water whose edges catch the light."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from equipoise.core.types import Images
from equipoise.corruptions.canvas import correlated
from equipoise.corruptions.edges import sobel, traced

LOW, HIGH = 50.0, 150.0
"""Thresholds of the edges of drops, of the gradient's sum of magnitudes, in bytes."""
FAR = 20
"""Distance from an edge, in pixels of the published size, beyond which all distances count alike."""
LIGHT = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
"""The filter that lights a relief from one corner."""


def film(liquid: Images, unit: float) -> Images:
    """Return the brightness of water, at most 1 in each image, from the density of the liquid.

    The distance from the nearest edge of the liquid, at most 20, is smoothed (3 by 3), equalised, lit from a corner and
    smoothed again; times the liquid, divided by the largest value. All steps are on bytes, as in the published code.
    Other than there, the directions of edges are not rounded to 45°, and distances are exact. A liquid that is 0
    everywhere stays so.
    """
    depth = (255 * liquid.double()).clamp(0, 255).floor()
    down, right = sobel(depth)
    shores = traced(down.abs() + right.abs(), down, right, LOW, HIGH)
    light = torch.tensor(LIGHT, dtype=torch.float64)
    distance = _smooth((_distance(shores) / unit).clamp(max=FAR)).floor()
    relief = _smooth(correlated(_equalised(distance), light).round().clamp(0, 255)).round()
    water = depth * relief
    return water / water.amax((1, 2, 3), keepdim=True).clamp_min(1)


def _distance(shores: Tensor) -> Images:
    """The distance of each pixel from the nearest one of the shores, in pixels; 0 without any."""
    away = [ndimage.distance_transform_edt(~shore[0]) * shore.any() for shore in shores.cpu().numpy()]
    return torch.from_numpy(np.stack(away))[:, None].to(shores.device)


def _smooth(images: Images) -> Images:
    """The mean over 3 by 3 pixels."""
    return correlated(images, torch.ones(3, 3, dtype=torch.float64)) / 9


def _equalised(distance: Images) -> Images:
    """The distances, whole numbers up to 20, as bytes spread evenly: 255 times the share of the pixels that are larger
    than the smallest value and at most this one. A constant image stays as it is.
    """
    values = distance.long().flatten(1)
    counts = torch.zeros(len(values), FAR + 1, dtype=torch.float64, device=values.device)
    below = counts.scatter_add(1, values, torch.ones_like(values, dtype=torch.float64)).cumsum(1)
    smallest = below.gather(1, values.amin(1, keepdim=True))
    share = (below.gather(1, values) - smallest) / (values.shape[1] - smallest).clamp_min(1)
    constant = smallest == values.shape[1]
    return torch.where(constant, values, (255 * share).round()).view_as(distance)
