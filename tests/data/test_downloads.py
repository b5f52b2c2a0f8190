"""Downloads, the cache of decoded archives, and the digits of scikit-learn."""

import http.server
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import (
    Cifar10Files,
    ImageFolder,
    MnistFiles,
    cifar10_files,
    image_files,
    unchecked,
    write_tar,
    write_zip,
)

from equipoise.core.errors import EquipoiseError, EquipoiseWarning
from equipoise.data import load
from equipoise.data.finding import published
from equipoise.data.published import SOURCES


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data, found = load("digits"), load_digits()
    assert data.shape == (1, 8, 8) and (len(data.train), len(data.test)) == (1438, 359)
    x, y = torch.cat([data.train.x, data.test.x]).flatten(1) * 16, torch.cat([data.train.y, data.test.y])
    ours = sorted(zip(x.tolist(), y.tolist(), strict=True))
    assert ours == sorted(zip(found.data.tolist(), found.target.tolist(), strict=True))
    counts = torch.bincount(data.test.y)
    assert counts.min() >= 34 and counts.max() <= 37
    assert load("digits").sha256 == data.sha256


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A local server of the folder `served`, and the paths that were asked of it."""
    (tmp_path / "served").mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    monkeypatch.setenv("no_proxy", "*")
    handler = partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}/", asked
        service.shutdown()
        thread.join()


def test_a_download_is_kept_and_read_again_without_the_network(
    tmp_path: Path, server: tuple[str, list[str]], cache: Path
) -> None:
    url, asked = server
    write_tar(tmp_path / "served" / "cifar-10-python.tar.gz", cifar10_files(Cifar10Files.content))
    source = unchecked("cifar10", url=url)
    first = published("cifar10", source, tmp_path / "nowhere")
    again = published("cifar10", source)
    assert first.sha256 == again.sha256 and asked == ["/cifar-10-python.tar.gz"]
    assert (cache / "cifar10" / "cifar-10-python.tar.gz").exists()


def test_a_download_with_another_digest_is_refused(tmp_path: Path, server: tuple[str, list[str]], cache: Path) -> None:
    url, _ = server
    (tmp_path / "served" / "cifar-10-python.tar.gz").write_bytes(b"something else")
    source = replace(SOURCES["cifar10"], url=url)
    with pytest.raises(EquipoiseError, match=r"cifar-10-python.tar.gz .* is not the published one; put it"):
        published("cifar10", source)
    assert not (cache / "cifar10" / "cifar-10-python.tar.gz").exists()


def test_without_a_network_the_file_the_places_and_the_way_out_are_named(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    url, asked = server
    with pytest.raises(
        EquipoiseError,
        match=rf"train-images-idx3-ubyte.gz of the dataset 'mnist' was not found in "
        rf"{tmp_path}/mnist or {tmp_path} or {tmp_path}/MNIST/raw and "
        r"could not be downloaded \(the server .*\); put it into a folder and name that with --data-root, or get it",
    ):
        published("mnist", replace(SOURCES["mnist"], url=url), tmp_path)
    assert len(asked) > 0
    with pytest.raises(EquipoiseError, match=r"'svhn' is not here and downloading is off; put it .* --data-root"):
        load("svhn", download=False)


def test_downloading_needs_pooch_and_reading_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(EquipoiseError, match=r"downloading needs pooch, which is not installed; put it into a folder"):
        load("mnist")
    MnistFiles().write(tmp_path, MnistFiles.content)
    assert published("mnist", unchecked("mnist"), tmp_path).name == "mnist"


def test_decoded_archives_are_kept_until_the_archive_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "a.zip", image_files(ImageFolder.content))
    first = load(path)
    (kept,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(import_module("equipoise.data.finding"), "read_images", lambda *_: pytest.fail("decoded again"))
        again = load(path)
    assert again.sha256 == first.sha256 and again.train.x.equal(first.train.x) and again.classes == first.classes
    kept.write_bytes(b"damaged")
    assert load(path).sha256 == first.sha256
    assert kept.stat().st_size > 1000
    write_zip(path, image_files(replace(ImageFolder.content, x=255 - ImageFolder.content.x)))
    assert load(path).sha256 != first.sha256


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "file" / "inside"))
    path = write_zip(tmp_path / "a.zip", image_files(ImageFolder.content))
    with pytest.warns(EquipoiseWarning, match=r"decoded images could not be kept for next time: cannot write"):
        assert len(load(path).train) == 9
