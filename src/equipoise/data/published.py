"""The published datasets: where their files come from, how they are read, and whether they are here."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from equipoise.core.files import cache_folder
from equipoise.data.formats import Arrays, Contents, read_cifar10, read_cifar100, read_mnist, read_svhn


@dataclass(frozen=True)
class Source:
    """Where a published dataset comes from and how it is read."""

    url: str
    """Address of the folder with the files."""
    files: tuple[tuple[str, ...], ...]
    """The files: the published name, then other names under which the same content is accepted."""
    digests: Mapping[str, str | None]
    """Digest, as `md5:...` or `sha256:...`, of the decompressed content of every file; None if it is not checked."""
    read: Callable[[Contents], Arrays]
    """From the decompressed content of the files to arrays."""
    archives: Mapping[str, str]
    """Digests of the files as published, checked on download."""
    validation: float | None = None
    """Share of the training samples that is usually held out for validation, if it is not that of all others."""


def _mnist(url: str, digests: Mapping[str, str | None], classes: tuple[str, ...]) -> Source:
    files = tuple((f"{name}.gz", name) for name in digests)
    return Source(url, files, digests, partial(read_mnist, classes=classes), archives={})


def _cifar(name: str, md5: str, folder: str, read: Callable[[Contents], Arrays], digests: Mapping[str, str]) -> Source:
    files = ((f"{name}.tar.gz", f"{name}.tar", folder),)
    return Source("https://www.cs.toronto.edu/~kriz/", files, digests, read, archives={f"{name}.tar.gz": md5})


_SVHN = {
    "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
}

SOURCES: Mapping[str, Source] = {
    "mnist": _mnist(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte": "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        tuple("0123456789"),
    ),
    "fashion-mnist": _mnist(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte": "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": _cifar(
        "cifar-10-python",
        "md5:c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        read_cifar10,
        {
            "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
            "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
            "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "md5:40351d587109b95175f43aff81a1287e",
            "batches.meta": "md5:5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "cifar100": _cifar(
        "cifar-100-python",
        "md5:eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        read_cifar100,
        {
            "train": "md5:16019d7e3df5f24257cddd939b257f8d",
            "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "md5:7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "svhn": Source(
        "http://ufldl.stanford.edu/housenumbers/",
        tuple((name, f"{name}.gz") for name in _SVHN),
        _SVHN,
        read_svhn,
        archives=_SVHN,
        validation=6_257 / 73_257,  # as the authors of UDP: 67,000 to train on
    ),
}
"""The published datasets that are found or downloaded, by name."""


def names() -> tuple[str, ...]:
    """Return the names of datasets that `load` knows."""
    return ("digits", *SOURCES)


_TORCHVISION = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
"""Where torchvision keeps the files of a dataset."""


def places(name: str, root: Path) -> list[Path]:
    """Return the folders under `root` in which the files of a published dataset are looked for."""
    return [root / name, root, *(root / folder for folder in [_TORCHVISION.get(name)] if folder)]


def available(name: str, root: str | os.PathLike[str] | None = None) -> bool:
    """Whether the files of a published dataset are under `root` or in the cache, so that `load` downloads nothing."""
    if name not in SOURCES:
        return name == "digits"
    folders = [] if root is None else places(name, Path(root))
    cache = cache_folder()
    return all(
        any(os.path.exists(folder / alternative) for folder in folders for alternative in file)
        or (cache is not None and os.path.exists(cache / name / file[0]))
        for file in SOURCES[name].files
    )
