"""The ModuleMesh daemon, its clients and its command line.

The clients are imported on first use: the command line must not load torch to print a version.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.client import MeshClient
    from meshnode.thin import ThinClient

__all__ = ["MeshClient", "ThinClient", "__version__"]

__version__ = version("modulemesh")


def __getattr__(name: str) -> Any:
    if name == "MeshClient":
        from meshnode.client import MeshClient  # noqa: PLC0415 - see above

        return MeshClient
    if name == "ThinClient":
        from meshnode.thin import ThinClient  # noqa: PLC0415 - see above

        return ThinClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
