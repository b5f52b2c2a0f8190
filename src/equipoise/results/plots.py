"""Drawings of results by matplotlib, for notebooks: accuracy against the radius, and images. No torch."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from equipoise.core.errors import EquipoiseError, require

_MOST = 100  # images of a grid


def figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure, in inches, that a notebook shows without `pyplot`. Raises `EquipoiseError` if
    matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EquipoiseError("plots need matplotlib: pip install 'equipoise[report]'.") from error

    class Shown(Figure):
        """A figure that shows itself."""

        def _repr_png_(self) -> bytes:
            content = BytesIO()
            self.savefig(content, format="png", dpi=100)
            return content.getvalue()

    return Shown(figsize=(width, height), layout="constrained")


def accuracy_against_eps(curves: Mapping[tuple[str, str], Sequence[tuple[float, float, float, float]]]) -> Any:
    """Return a figure with a panel per norm and in it a line per attack: accuracy in percent with its interval.

    `curves` holds for each attack and norm the points `(eps, accuracy, low, high)`, in the order of their radii.
    """
    norms = list(dict.fromkeys(norm for _, norm in curves))
    require(len(norms) > 0, "there is no attack to draw: evaluate under one, such as pgd.")
    drawing = figure(4.8 * len(norms), 3.4)
    for axes, norm in zip(drawing.subplots(1, len(norms), squeeze=False, sharey=True)[0], norms, strict=True):
        for name, points in ((attack, points) for (attack, of), points in curves.items() if of == norm):
            eps, accuracy, low, high = np.array(points).T
            (line,) = axes.plot(eps, 100 * accuracy, marker="o", markersize=4, label=name)
            axes.fill_between(eps, 100 * low, 100 * high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel=f"eps ({norm})", ylim=(0, 100))
        axes.legend(frameon=False)
    drawing.axes[0].set_ylabel("accuracy in %")
    return drawing


def image_grid(pixels: np.ndarray, titles: Sequence[str]) -> Any:
    """Return a figure with the first 100 images of shape (n, channels, h, w), of one or three channels in [0, 1], and a
    title over each.
    """
    require(
        pixels.ndim == 4 and pixels.shape[1] in (1, 3) and len(pixels) > 0,
        f"inputs of shape {pixels.shape} are not images: expected (n, 1 or 3, height, width) with n > 0.",
    )
    pixels = pixels[:_MOST].transpose(0, 2, 3, 1).clip(0, 1)
    columns = min(10, len(pixels))
    rows = math.ceil(len(pixels) / columns)
    drawing = figure(1.2 * columns, 1.45 * rows)
    panels = drawing.subplots(rows, columns, squeeze=False).flat
    for axes in panels:
        axes.axis("off")
    for axes, image, title in zip(drawing.axes, pixels, titles, strict=False):
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8)
    return drawing
