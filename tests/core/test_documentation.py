"""`help` and IPython's `?` show the documentation of fields, which Python itself discards."""

import pydoc
from dataclasses import fields, is_dataclass

import pytest

import equipoise as eq
from equipoise.attacks import FAB
from equipoise.training import Recipe


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (eq.Ball, "eps: Radius, in the units of the input (pixels in [0, 1]); 0 allows no perturbation"),
        (eq.Ascent, "tau: Stop a sample at the point where its prediction has been wrong more than this many times"),
        (FAB, "eta: How far a move goes beyond the plane"),
        (Recipe, "batch_size: Samples per step"),
        (eq.steps.Triangular, "peak: Step size in the middle"),
        (eq.AttackResult, "success: "),
        (eq.data.Dataset, "test: Test samples, for final results only"),
        (eq.data.Split, "y: Class of each sample, int64"),
    ],
)
def test_help_shows_the_fields(kind: type, text: str) -> None:
    shown = " ".join(pydoc.plain(pydoc.render_doc(kind)).replace("|", " ").split())
    assert "Attributes:" in shown and text in shown


def test_every_public_dataclass_shows_its_fields() -> None:
    public = [getattr(module, name) for module in (eq, eq.attacks, eq.steps) for name in vars(module)]
    kinds = [kind for kind in public if isinstance(kind, type) and is_dataclass(kind) and fields(kind)]
    assert len(kinds) > 15
    for kind in kinds:
        text = kind.__doc__ or ""
        assert text.count("Attributes:") == 1 and "example:" not in text
        assert any(f"    {field.name}: " in text for field in fields(kind)), kind
