"""`import equipoise as eq`: every public name is there, is what it says, and is imported when it is used."""

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

import equipoise as eq
from equipoise.evaluation import evaluate
from equipoise.training import fit, load_run


@pytest.mark.parametrize("name", eq.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(eq, name)
    assert isinstance(found, ModuleType | Callable) and name in dir(eq)


def test_names_are_what_they_say() -> None:
    assert (eq.train, eq.evaluate, eq.load) == (fit, evaluate, load_run)
    assert eq.methods.udp.__module__ == "equipoise.training.methods.attacked"
    assert eq.attacks.pgd(eps=0.1).geometry == eq.Ball("linf", 0.1)
    assert callable(eq.certify) and callable(eq.check_masking) and eq.__version__.count(".") == 2


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'equipoise' has no attribute 'fit_everything'"):
        _ = eq.fit_everything  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "code",
    [
        "import equipoise",
        "import equipoise.data.published, equipoise.results.costs, equipoise.report",
        "from equipoise.cli import main; main(['experiments'])",
        "from equipoise.cli import main; main(['experiments', '--data', 'mnist=.', '--workers', '3'])",
    ],
)
def test_what_needs_no_torch_imports_none(code: str) -> None:
    code += "; import sys; print([name for name in ('torch', 'scipy', 'jaxtyping') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", [eq, eq.data])
def test_names_are_found_lazily_but_no_others(package: ModuleType) -> None:
    assert {*package.__all__} <= {*dir(package)}
    assert callable(eq.data.load) and isinstance(eq.data.formats, ModuleType)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'lode'"):
        _ = package.lode
    assert not hasattr(package, "lode.r") and not hasattr(package, "data.formats")
