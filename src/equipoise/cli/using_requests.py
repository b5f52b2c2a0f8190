"""The requests of the commands that use a trained model, or show results as data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equipoise.cli.options import Positional
from equipoise.geometry import NormName


@dataclass(frozen=True)
class Table:
    """Tabulate accuracies: a row per model, a column per attack and radius, over seeds their mean.

    Runs that differ only in their seed are one row, with the 95 % interval of the mean (Student's t); any other row has
    the interval of its samples (Wilson's).

    Example: equipoise table runs/pgd runs/udp-0 runs/udp-1 aa.json --latex
    """

    runs: Positional[tuple[Path, ...]]
    """Run directories, names of models that `equipoise models` lists, and records of `equipoise evaluate`."""
    latex: bool = False
    """Print LaTeX, for the package booktabs."""
    csv: bool = False
    """Print comma-separated values: accuracies in [0, 1] with both ends of their intervals, a line for each."""
    markdown: bool = False
    """Print Markdown."""
    out: Path | None = None
    """File to write instead of printing; .tex, .csv and .md say which format."""
    overwrite: bool = False
    """Replace another file in --out."""


@dataclass(frozen=True)
class Predict:
    """Predict single inputs: the class, how uncertain it is, and the radius that it withstands.

    The radius is an upper bound, from the nearest input with another prediction that an attack finds; --certified adds
    a lower bound. Images are turned as their EXIF orientation says, and resized around the centre to the model's input.

    Example: equipoise predict digits/udp-0.15 photo.png scan.jpg --certified
    """

    target: Positional[str]
    """Run directory, or name of a model that `equipoise models` lists."""
    inputs: Positional[tuple[Path, ...]]
    """Image files, or arrays of inputs in .npy or .npz."""
    norm: NormName = "linf"
    """Norm of the radius."""
    radius: bool = True
    """Search for the nearest input with another prediction, which takes most of the time."""
    certified: bool = False
    """Also prove a radius, for networks of linear, convolutional, pooling and pointwise layers."""
    json: bool = False
    """Print JSON instead of a table."""
    out: Path | None = None
    """File to write, .json or .csv."""
    overwrite: bool = False
    """Replace another file in --out."""
    weights: Literal["best", "last"] = "best"
    """Weights of the run, best by validation or last."""
    seed: int = 0
    """Random seed of the search, and of a random model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto takes a GPU if there is one."""


@dataclass(frozen=True)
class Export:
    """Export a trained model for other programs, and check the file against PyTorch.

    The file takes float32 inputs in [0, 1], of any number at once, and returns logits; normalisation is inside. The
    names of the classes and the shape of an input are in its metadata. An ensemble is exported as its mean prediction.

    Example: equipoise export runs/udp --to onnx --out udp.onnx
    """

    target: Positional[str]
    """Run directory, or name of a model that `equipoise models` lists."""
    to: Literal["onnx", "torchscript", "torch.export"] = "onnx"
    """Format of the file."""
    out: Path | None = None
    """File to write; by default model.onnx, model.torchscript.pt or model.pt2 in the current folder."""
    overwrite: bool = False
    """Replace another file in --out."""
    weights: Literal["best", "last"] = "best"
    """Weights of the run, best by validation or last."""
