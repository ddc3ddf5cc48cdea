"""The ModuleMesh daemon, its client and its command line.

`MeshClient` is imported on first use: the command line must not load torch to print a version.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.client import MeshClient

__all__ = ["MeshClient", "__version__"]

__version__ = version("modulemesh")


def __getattr__(name: str) -> Any:
    if name == "MeshClient":
        from meshnode.client import MeshClient  # noqa: PLC0415 - see above

        return MeshClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
