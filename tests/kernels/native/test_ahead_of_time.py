"""Kernels that a wheel brings along, for machines without a compiler."""

from pathlib import Path

import pytest
import torch

from equipoise import attacks, nets
from equipoise.kernels.native import build, compiler, library, way
from equipoise.kernels.native.compiling import LEVELS, compile_ahead

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A folder of the package as a wheel has it."""
    package = tmp_path_factory.mktemp("native")
    assert {path.name for path in compile_ahead("cc", package / "prebuilt")} == {f"{level}.so" for level in LEVELS}
    return package


@pytest.fixture
def without_compiler(compiled, monkeypatch):
    """No compiler, and the kernels of that wheel."""
    monkeypatch.delenv("EQUIPOISE_NATIVE", raising=False)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(build, "files", lambda package: compiled)
    build._ahead_of_time.cache_clear()
    yield
    build._ahead_of_time.cache_clear()


@pytest.mark.timeout(600)
def test_without_a_compiler_they_are_used_and_find_the_same(without_compiler, monkeypatch):
    if not any(flags <= set(build._instruction_set().split()) for flags in LEVELS.values()):
        pytest.skip("this processor can run none of the kernels of a wheel")
    net = nets.build("lenet", (1, 28, 28), classes=10, seed=0)
    x = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    attack = attacks.pgd(0.1, steps=10)
    assert way().startswith("compiled ahead of time, ") and library() is not None
    found = attack(net, x, net(x).argmax(1))
    monkeypatch.setenv("EQUIPOISE_NATIVE", "0")
    assert library() is None and way() == ""
    expected = attack(net, x, net(x).argmax(1))
    same = (found.x - expected.x).abs().flatten(1).amax(1) < 1e-6
    assert same.float().mean() > 0.9 and torch.equal(found.success[same], expected.success[same])


def test_a_processor_that_cannot_run_them_uses_pytorch(without_compiler, monkeypatch):
    monkeypatch.setattr(build, "_instruction_set", lambda: "flags : fpu sse sse2 avx")
    assert library() is None
    build._ahead_of_time.cache_clear()
    monkeypatch.setattr(build, "_instruction_set", lambda: "flags : " + " ".join(LEVELS["x86-64-v3"]))
    kernels = library()
    assert kernels is not None and kernels.simd_width() == 8, "not those of AVX-512, which it has not"
