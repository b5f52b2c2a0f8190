"""Old names of modules still import, as the very modules that they are now, and say the new name."""

import dataclasses
import subprocess
import sys
from importlib import import_module

import pytest

from equipoise.core.deprecation import MOVED, new_name


def in_its_place(old: str) -> object:
    """What a package has under the name of a module that was there."""
    package, _, name = f"equipoise.{old}".rpartition(".")
    module = import_module(package)
    return getattr(module, name) if name in getattr(module, "__all__", ()) else vars(module).get(name)


SHADOWED = [old for old in MOVED if callable(in_its_place(old))]


@pytest.mark.parametrize("old", [old for old in MOVED if old not in SHADOWED])
def test_an_old_name_is_the_module_of_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = f"equipoise.{MOVED[old]}"
    before = import_module(new).__spec__
    monkeypatch.delitem(sys.modules, f"equipoise.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"equipoise\.{old} has moved: import {new}$") as said:
        module = import_module(f"equipoise.{old}")
    assert module is import_module(new) and module.__name__ == new and module.__spec__ is before
    assert len(said) == 1


@pytest.mark.parametrize("old", SHADOWED)
def test_an_old_module_never_takes_the_place_of_a_function(old: str) -> None:
    function = in_its_place(old)
    with pytest.raises(ModuleNotFoundError, match=rf"equipoise\.{old} has moved: import equipoise\.{MOVED[old]}$"):
        import_module(f"equipoise.{old}")
    assert in_its_place(old) is function


def test_a_package_stands_for_its_modules() -> None:
    assert new_name("equipoise.predictive.deep_kernel_gp") == "equipoise.models.deep_kernel_gp"
    assert new_name("equipoise.attacks") is None and new_name("json.types") is None
    assert new_name("equipoise.typesetting") is None


def test_the_warning_points_at_the_line_that_uses_the_old_name() -> None:
    code = "import equipoise\n\nfrom equipoise.errors import EquipoiseError\nprint(equipoise.rng.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "equipoise.core.rng"
    assert "<string>:3: DeprecationWarning: equipoise.errors has moved: import equipoise.core.errors" in done.stderr
    code = "from equipoise import attacks\n\nattacks.pgd(0.1, keep='best')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "<string>:3: DeprecationWarning: keep= has been renamed" in done.stderr


def test_old_names_of_fields_still_configure_an_attack() -> None:
    from equipoise import attacks

    with pytest.warns(DeprecationWarning, match=r"keep= has been renamed: write return_point="):
        old = attacks.pgd(0.1, keep="best")
    assert old == attacks.pgd(0.1, return_point="best")
    with pytest.warns(DeprecationWarning, match=r"patience= has been renamed: write tau="):
        assert dataclasses.replace(attacks.pgd(0.1, tau=2, return_point="last"), patience=3).tau == 3
    with pytest.warns(DeprecationWarning, match=r"keep= has been renamed"):
        assert attacks.fab(0.1, keep="nearest") == attacks.fab(0.1, return_point="nearest")
    with pytest.warns(DeprecationWarning, match=r"draws= has been renamed"):
        assert attacks.square(0.1, draws=3) == attacks.square(0.1, eot_samples=3)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("equipoise.attacks", "Perturbed", "AttackResult"),
        ("equipoise.attacks.result", "Goal", "Criterion"),
        ("equipoise.evaluation", "assess", "evaluate_dataset"),
        ("equipoise.evaluation", "cautions", "result_warnings"),
        ("equipoise.evaluation", "judge", "check_results"),
        ("equipoise.evaluation", "probe", "check_model"),
        ("equipoise.results.records", "AttackResult", "AttackRecord"),
        ("equipoise.results.records", "Flag", "ResultWarning"),
    ],
)
def test_old_names_in_modules_still_import(module: str, old: str, new: str) -> None:
    home = import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{old} has been renamed: write {module}\.{new}$"):
        assert getattr(home, old) is getattr(home, new)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        home.nothing  # noqa: B018
