"""How the C kernels are compiled and kept, and what happens where they cannot be."""

import ctypes
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from equipoise import attacks, nets
from equipoise.attacks.execution import frozen_model
from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.core.rng import Streams
from equipoise.kernels.native import NativeForward, build, compiler, compiling
from equipoise.models import as_predictive

pgd = partial(attacks.pgd, start="zero", return_point="last")

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty cache folder, and nothing compiled yet in this process."""
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    monkeypatch.setattr(compiling, "_OPTIONS", tuple(o.replace("-O3", "-O0") for o in compiling._OPTIONS))
    build._compiled.cache_clear()
    yield tmp_path
    build._compiled.cache_clear()


def test_it_is_compiled_once_and_kept(elsewhere, monkeypatch):
    assert isinstance(build.library(), ctypes.CDLL)
    (kept,) = (elsewhere / "native").iterdir()
    build._compiled.cache_clear()
    monkeypatch.setattr(build, "compile_kernels", None)
    assert build.library() is not None and kept.suffix == ".so"


@pytest.fixture(params=["no home", "a file in the way", "damaged", "no room"])
def without_cache(request, elsewhere, monkeypatch):
    """Nowhere to keep a compiled program, or nothing useful there."""
    if request.param == "no home":
        for name in ("EQUIPOISE_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", classmethod(lambda cls: (_ for _ in ()).throw(RuntimeError("no home"))))
    elif request.param == "a file in the way":
        (elsewhere / "native").write_bytes(b"")
    elif request.param == "damaged":
        assert build.library() is not None
        (kept,) = (elsewhere / "native").iterdir()
        kept.unlink()  # the process still uses the old file
        kept.write_bytes(b"cut")
        build._compiled.cache_clear()
    else:
        wrong = elsewhere / "cc-without-room"
        wrong.write_text(
            f"#!/bin/sh\ncase $PWD in {elsewhere}/*) echo 'No space left' >&2; exit 1;; esac\nexec cc $*\n"
        )
        wrong.chmod(0o755)
        monkeypatch.setenv("CC", str(wrong))
    return elsewhere


def test_without_a_cache_that_can_be_used_it_is_compiled_all_the_same(without_cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = build.library()
    assert found is not None and found.trace_size.restype is ctypes.c_size_t


def test_a_compiler_that_is_no_command_is_refused(monkeypatch):
    monkeypatch.setenv("CC", "gcc '")
    with pytest.raises(EquipoiseError, match="CC=gcc ' is not a command"):
        compiler()


def test_the_compiler_is_looked_for_anew_where_the_folders_of_commands_are_others(tmp_path, monkeypatch):
    own, found = tmp_path / "own-cc", []
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("CC", "own-cc -g")
    for path in ("/nowhere", str(tmp_path), "/nowhere"):
        monkeypatch.setenv("PATH", path)
        found.append(compiler())
    assert found == [None, "own-cc -g", None]


@pytest.mark.parametrize(
    ("script", "said"), [("echo 'no such flag' >&2; exit 1", "no such flag"), ("exit 0", "No such")]
)
def test_a_compiler_that_fails_is_named_and_the_library_used(elsewhere, monkeypatch, script, said):
    wrong = elsewhere / "wrong-cc"
    wrong.write_text(f"#!/bin/sh\n{script}\n")
    wrong.chmod(0o755)
    monkeypatch.setenv("CC", str(wrong))
    net, x = nets.build("cnn4", (1, 28, 28), classes=10, seed=0), torch.rand(4, 1, 28, 28)
    with pytest.warns(EquipoiseWarning, match=rf"wrong-cc did not compile the kernels .*{said}.*PyTorch's are used"):
        found = pgd(0.1, steps=2)(net, x, net(x).argmax(1))
    assert found.distance.max() > 0 and not list(Path(elsewhere, "native").iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(0.1, steps=2)(net, x, net(x).argmax(1))  # said once


@pytest.mark.parametrize(("name", "value"), [("EQUIPOISE_NATIVE", "0"), ("CC", "no-such-compiler")])
def test_without_a_compiler_or_when_told_so_the_library_is_used(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    net, x = nets.build("cnn4", (1, 28, 28), classes=10, seed=0), torch.rand(4, 1, 28, 28)
    with frozen_model(as_predictive(net), x) as draw:
        assert compiler() is None and not isinstance(draw(Streams.of(0, torch.arange(4))), NativeForward)
