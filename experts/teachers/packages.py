"""Optional packages, imported when a teacher first needs them and never before."""

import importlib
from types import ModuleType

from experts.errors import PackageMissing

__all__ = ["EXTRA", "imported"]

EXTRA = "teachers"
"""What to install for them: ``pip install 'modulemesh[teachers]'``."""


def imported(package: str, *, subject: str, extra: str = EXTRA) -> ModuleType:
    """The package, imported.

    Args:
        package: Also a module in it: ``timm.data``.
        subject: What needs it, for the error.
        extra: The extra of this project that brings it.
    Raises: PackageMissing: If it is not installed, or does not load here.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as exc:
        raise PackageMissing(subject, package=package.partition(".")[0], extra=extra) from exc
    except (ImportError, OSError, RuntimeError) as exc:
        # torchvision beside a torch of another version registers operators that are not there: a RuntimeError.
        raise PackageMissing(subject, package=package, extra=extra, reason=f"does not load here ({exc})") from exc
