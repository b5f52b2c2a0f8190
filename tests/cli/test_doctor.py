"""doctor: what the machine computes with, and what is missing."""

import re
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from equipoise.cli import doctor, main
from equipoise.kernels.native import compiler


def said(capsys) -> dict[str, str]:
    assert main(["doctor"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    return {name.rstrip(":"): rest for name, rest in (re.split(r"  |(?<=^next:) ", line, maxsplit=1) for line in lines)}


def test_versions_threads_and_kernels_are_told(capsys, monkeypatch):
    monkeypatch.delenv("EQUIPOISE_NATIVE", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    found = said(capsys)
    assert "next" not in found
    assert torch.__version__ in found["torch"] and found["threads"].strip().startswith(str(torch.get_num_threads()))
    assert found["GPUs"].strip() == (torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none")
    if compiler() is not None:
        assert "compiled by" in found["kernels"] and "samples side by side" in found["kernels"]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("EQUIPOISE_NATIVE", "0", "off, by EQUIPOISE_NATIVE=0"),
        ("CC", "no-such-compiler", "none: install a C compiler"),
        ("CC", "false", "did not compile"),
    ],
)
def test_why_there_are_no_kernels(variable, value, words, capsys, monkeypatch):
    monkeypatch.delenv("EQUIPOISE_NATIVE", raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv(variable, value)
    assert words in said(capsys)["kernels"]


def test_what_is_missing_is_told_with_the_remedy(capsys, monkeypatch, tmp_path):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("COLUMNS", "300")
    found = said(capsys)
    assert "pip install 'equipoise[report]'" in found["extra report"] and "(empty)" in found["cache"]
    assert found["next"] == "pip install 'equipoise[report]'"
    monkeypatch.setattr(doctor, "cache_folder", lambda: None)
    assert "EQUIPOISE_CACHE" in said(capsys)["cache"]
