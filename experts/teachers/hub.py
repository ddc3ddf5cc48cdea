"""Hugging Face's cache on this machine: looked into without the network, filled only where that was asked for.

Of a repository only safetensors and JSON are ever fetched: its pickles and its code stay where they are.
"""

from pathlib import Path

from experts.errors import UnknownTeacher
from experts.teachers.packages import imported

__all__ = ["hub_file", "hub_folder"]

_FETCHED = ("*.json", "*.safetensors")


def hub_file(repository: str, file: str, *, name: str, download: bool) -> Path:
    """One file of a repository.

    Args:
        repository: ``OWNER/NAME``.
        name: Of the teacher that needs it, for the error.
        download: Whether it may be fetched where the cache has none.
    Raises: UnknownTeacher: If it is not here. PackageMissing: If huggingface_hub is not installed.
    """
    hub = imported("huggingface_hub", subject=name)
    try:
        # Not hf_hub_download(local_files_only=True), which may look other things up on the network first.
        found = hub.try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
        if not download:
            raise UnknownTeacher(
                name, reason=f"{file} of {repository} is not in the cache, and fetching it was not asked for"
            )
        return Path(hub.hf_hub_download(repository, file))
    except (OSError, ValueError) as exc:
        raise UnknownTeacher(name, reason=f"{file} of {repository} could not be fetched: {exc}") from exc


def hub_folder(repository: str, *, name: str, download: bool) -> Path:
    """The folder of a repository's configs and safetensors.

    Args: As `hub_file`.
    Raises: UnknownTeacher: If its config is not here. PackageMissing: If huggingface_hub is not installed.
    """
    hub = imported("huggingface_hub", subject=name)
    if not download:
        return hub_file(repository, "config.json", name=name, download=False).parent
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=list(_FETCHED)))
    except (OSError, ValueError) as exc:
        raise UnknownTeacher(name, reason=f"{repository} could not be fetched: {exc}") from exc
