"""The documentation: public names say what they are, and the code and the commands on every page work."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch

import equipoise
from equipoise import data, nets
from equipoise.cli import main
from equipoise.cli.overview import COMMANDS
from equipoise.cli.parsing import parse
from equipoise.reproduce.studies.toys import narrow_corridor

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}
INTERNAL = {"equipoise.cli", "equipoise.core", "equipoise.kernels"}
"""Packages of which only the modules that are named belong to the API: the reference of `cli` is its --help."""


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)


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


@pytest.fixture(scope="module")
def listed() -> list[str]:
    """The modules of the API reference."""
    pages = [path.read_text() for path in sorted((DOCS / "api").glob("*.md"))]
    return re.findall(r"^::: (\S+)", "\n".join(pages), re.MULTILINE)


def test_every_package_is_in_the_api_reference_once(listed):
    packages = {name for name in MODULES if name.count(".") == 1 and hasattr(importlib.import_module(name), "__path__")}
    assert packages - {*listed} - INTERNAL == set() and len({*listed}) == len(listed)


def test_the_api_reference_names_nothing_else(listed):
    assert {*listed} - {*MODULES} == set()


def imported_from(code: str) -> Iterator[tuple[str, str]]:
    """The modules and names of every `from equipoise... import name` of a code block."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("equipoise."):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_what_the_pages_import_is_in_the_api_reference(listed):
    """As a name of a listed module, or as a listed module itself."""
    code = [block for path in PAGES.values() for block in blocks(path, "python")]
    code += [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    used = {pair for block in code for pair in imported_from(block)}
    assert len(used) > 40
    assert {f"{module}.{name}" for module, name in used if not {module, f"{module}.{name}"} & {*listed}} == set()


def commands(page: Path) -> list[list[str]]:
    """The words of every `equipoise` command of a page, lines that go on joined."""
    text = "".join(blocks(page, "(?:bash)?")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ") for line in text.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("equipoise ")]


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if commands(path)])
def test_every_command_of_a_page_can_be_carried_out(page):
    for words in commands(PAGES[page]):
        if "COMMAND" not in words and not {"--help", "--help-all", "--version"} & {*words}:
            assert parse(words)


def script(path: Path) -> ModuleType:
    """A file of Python that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_command_line_has_every_command(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    written = script(DOCS / "hooks" / "command_line.py").reference()
    assert re.findall(r"^## (\S+)$", written, re.MULTILINE) == list(COMMANDS)
    assert "usage: equipoise train udp --eps NUMBER" in written and "--resample" not in written


SMALL = ((r"epochs=\d+", "epochs=1"), (r"steps=\d+", "steps=2"), (r"count=\d+", "count=2"))
"""What is made smaller in the code of the pages, so that it runs in a moment."""


def few(dataset: data.Dataset, train: int = 210) -> data.Dataset:
    """A small part of a dataset, so that its samples are attacked in a moment."""
    return dataclasses.replace(dataset.limit(train), test=data.Split(dataset.test.x[:50], dataset.test.y[:50]))


def given() -> dict[str, object]:
    """What a page that speaks of the reader's own model may use: `model`, `net`, `method`, `x`, `y`, `loader`."""
    digits = data.load("digits")
    net = nets.build("mlp", digits.shape, classes=10, seed=0)
    x, y = digits.test.x[:12], digits.test.y[:12]
    method = equipoise.methods.pgd_at(eps=0.1, steps=2)
    return {
        "model": net,
        "net": net,
        "method": method,
        "x": x,
        "y": y,
        "loader": [(x, y)],
        "torch": torch,
        "eq": equipoise,
    }


ELSEWHERE = {"docs/your-own-attack.md", "docs/tutorial.md"}  # test_your_own_attack.py, and below
FOREIGN = re.compile(
    r"import (?:torchattacks|robustbench|art\b)|from (?:torchattacks|robustbench|art|autoattack)\b|Trainer\("
)
"""Code of libraries that are not installed here."""


@pytest.mark.unchecked  # which takes a third of the time
@pytest.mark.filterwarnings("ignore")  # of single epochs, which teach a network little
@pytest.mark.parametrize("page", [n for n, path in PAGES.items() if blocks(path, "python") and n not in ELSEWHERE])
def test_the_code_of_a_page_runs_as_it_stands(page, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "load", lambda *_, load=data.load, **__: few(load("digits")))
    monkeypatch.chdir(tmp_path)
    names = given()
    for block in blocks(PAGES[page], "python"):
        if not FOREIGN.search(block):
            for pattern, small in SMALL:
                block = re.sub(pattern, small, block)
            exec(compile(block, page, "exec"), names)


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore")
def test_what_the_page_for_users_of_other_libraries_offers_them_works(monkeypatch):
    """Every piece of code in the right columns of the tables, in the order of the page."""
    monkeypatch.setattr(data, "load", lambda *_, load=data.load, **__: few(load("digits"), 90))
    names = given() | {"images": given()["x"], "labels": given()["y"], "root": None, "dataset": data.load("digits")}
    exec(HELP_OF_THE_TABLES, names)
    cells = re.findall(r"^\|.*\| ([^|]*) \|$", PAGES["docs/coming-from.md"].read_text(), re.MULTILINE)
    code = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell) if OURS.match(span)]
    assert len(code) > 30
    for span in code:
        exec(re.sub(*SMALL[0], span), names)


OURS = re.compile(r"(?:attacks|methods|eq\.\w+|nn)\.?\w*\(|(?:atk|aa|adv|result) = |result\.|atk\(|suite\(|\(~")
HELP_OF_THE_TABLES = """
from torch import nn
from equipoise import attacks, methods
from equipoise.evaluation import suite
from equipoise.geometry import Box
from equipoise.nets import Normalize
a, b, m, s, low, high = attacks.fgsm(0.1), attacks.pgd(0.1), [0.1], [0.3], 0.0, 1.0
targets = t = (y + 1) % 10
f = lambda x, y: (y + 1) % 10
"""


QUICK = {r"--epochs \S+": "--epochs 3", r"--time-budget \S+": "--time-budget 0.01", "autoattack": "fgsm"}
"""What is made smaller in the commands of the tutorial."""


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore")
def test_the_tutorial_runs_as_it_stands(monkeypatch, tmp_path, capsys):
    """Every command and every block of code, in the order of the page, in an empty folder."""
    monkeypatch.setattr(data, "load", lambda *_, load=data.load, **__: few(load("digits"), 500))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {}
    for language, block in re.findall(
        r"^```(bash|python)\n(.*?)^```", PAGES["docs/tutorial.md"].read_text(), re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            if "class Rounded" in block:
                Path("rounded.py").write_text(block)
            for pattern, small in SMALL:
                block = re.sub(pattern, small, block)
            exec(compile(block, "tutorial", "exec"), names)
            continue
        for line in block.splitlines():
            for option, small in QUICK.items():
                line = re.sub(option, small, line)
            assert main(shlex.split(line)[1:]) == (3 if "audit" in line else 0), capsys.readouterr().err
    assert Path("my-model/README.md").is_file()


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run_in_their_order(path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *_, load=data.load, **__: few(load("digits")))
    book, names = json.loads(path.read_text("utf-8")), {}
    assert book["nbformat"] == 4 and len(book["cells"]) > 5
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            source = "".join(cell["source"])
            for pattern, small in SMALL[:1]:
                source = re.sub(pattern, small, source)
            exec(compile(source, path.name, "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


def test_distances_of_the_explorable_page_are_those_to_a_line():
    """Of a linear classifier whose boundary is the vertical axis the distance of a point is its first coordinate."""
    toy, line = narrow_corridor(), torch.nn.Linear(2, 2)
    with torch.no_grad():  # in the unit square the axis is at 1/2
        line.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        line.bias.copy_(torch.tensor([0.0, -0.5]))
    page = script(ROOT / "benchmarks" / "explorable.py")
    points = np.array([[-1.5, 0.3], [0.4, -1.0], [2.0, 1.0]])
    found = page.to_boundary(line, toy, points, 200)
    assert found == pytest.approx(np.abs(points[:, 0]), abs=2 * 5.5 / 200)


def test_the_explorable_page_needs_nothing_from_elsewhere():
    page = (DOCS / "explorable.html").read_text("utf-8")
    assert len(page) < 1.5e6 and not re.search(r"(?:src|href)=|https?://|url\(", page)
    found = re.search(r"const DATA = (\{.*\});\n", page)
    assert found is not None
    content = json.loads(found[1])
    settings = 1 + (len(content["methods"]) - 1) * len(content["radii"]) * len(content["steps"])
    assert len(content["problems"]) == 3
    assert all(len(problem["networks"]) == settings for problem in content["problems"])
