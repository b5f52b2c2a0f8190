"""Every public name says what it is, and every public module is in the API reference."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import equipoise

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = "equipoise.cli"  # its reference is its --help


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


MODULES = sorted(m.name for m in pkgutil.walk_packages(equipoise.__path__, "equipoise.") if is_public(m.name))


def is_written(obj: object, doc: str | None) -> bool:
    """A docstring that a person wrote: not empty, and not the signature that a dataclass gets by itself."""
    generated = dataclasses.is_dataclass(obj) and isinstance(obj, type) and (doc or "").startswith(f"{obj.__name__}(")
    return bool((doc or "").strip()) and not generated


def undocumented(module: ModuleType) -> Iterator[str]:
    """Names of the module's own public functions, classes and methods, and of itself, that have no docstring."""
    if not is_written(module, module.__doc__):
        yield module.__name__
    for name, obj in vars(module).items():
        if not is_public(name) or getattr(obj, "__module__", None) != module.__name__:
            continue
        if isinstance(obj, type | FunctionType) and not is_written(obj, obj.__doc__):
            yield f"{module.__name__}.{name}"
        if isinstance(obj, type):
            for member, value in vars(obj).items():
                written = isinstance(value, FunctionType | property | classmethod | staticmethod)
                if is_public(member) and written and not is_written(value, inspect.getdoc(getattr(obj, member))):
                    yield f"{module.__name__}.{name}.{member}"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name):
    assert list(undocumented(importlib.import_module(name))) == []


@pytest.fixture
def listed() -> set[str]:
    return set(re.findall(r"^::: (\S+)", "\n".join(page.read_text() for page in DOCS.rglob("*.md")), re.MULTILINE))


def test_every_public_module_is_in_the_api_reference(listed):
    """A package stands for its modules: its page shows them too."""
    covered = {name for name in MODULES if any(f"{name}.".startswith(f"{package}.") for package in {*listed, COMMANDS})}
    assert set(MODULES) - covered == set()


def test_the_api_reference_names_nothing_else(listed):
    assert listed - set(MODULES) == set()


def test_the_check_sees_what_is_missing():
    module = ModuleType("sample", "A module.")
    source = """
from dataclasses import dataclass
@dataclass
class Generated:
    field: int
    def method(self): return 1
    @property
    def value(self): return 1
    @staticmethod
    def free(): return 1
    def _private(self): return 1
class Written:
    "Fine."
def function(): return 1
def fine(): "Fine."
def _private(): return 1
"""
    exec(source, vars(module) | {"__name__": "sample"}, vars(module))
    assert sorted(undocumented(module)) == [
        "sample.Generated",
        "sample.Generated.free",
        "sample.Generated.method",
        "sample.Generated.value",
        "sample.function",
    ]


@pytest.mark.filterwarnings("ignore")  # of two epochs, which teach a network little
@pytest.mark.parametrize("name", ["training.md", pytest.param("using.md", marks=pytest.mark.unchecked)])
def test_the_page_runs_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, names = (DOCS / name).read_text(), {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 5
    for block in blocks:
        exec(block, names)
