"""From a config to its architecture: the built-in kinds, then those that installed packages declare.

A package declares a kind by a Python entry point (packaging.python.org, "Entry points specification") that names a
subclass of `Architecture` with that ``kind``. In its pyproject.toml:

    [project.entry-points."modulemesh.architectures"]
    my-kind = "my_package.my_module:MyArchitecture"

To serve in a mesh, such an architecture has an attribute ``feature_dim``, the D that it reads, which must be that of
the mesh's trunk, and its config has ``num_classes``, which each expert has its own of; all else in the config is flat:
true or false, finite numbers, words. Linear is the shortest example.

A config may come from anyone. It can name a kind, never code: what a name stands for, the owner of this machine
decided by installing the package, and nobody can replace a built-in kind.
"""

import functools
import importlib.metadata
import inspect
from collections.abc import Mapping

from experts.architectures.adapter import AdapterArchitecture
from experts.architectures.base import MAX_PARAMETERS, Architecture
from experts.architectures.conv import ConvArchitecture
from experts.architectures.deep import DeepArchitecture
from experts.architectures.linear import LinearArchitecture
from experts.architectures.mlp import MlpArchitecture
from experts.errors import UnknownArchitecture

__all__ = ["ENTRY_POINT_GROUP", "architecture_from_config"]

ENTRY_POINT_GROUP = "modulemesh.architectures"
"""Where packages declare kinds."""

_BUILT_IN: Mapping[str, type[Architecture]] = {
    kind.kind: kind
    for kind in (AdapterArchitecture, ConvArchitecture, DeepArchitecture, LinearArchitecture, MlpArchitecture)
}


def architecture_from_config(config: Mapping[str, object]) -> Architecture:
    """The architecture that a config names; safe on a config from anyone.

    Installed packages are looked at when a kind is first asked for that is not built in, once a process, and only
    the one that declares it is imported.

    Raises: UnknownArchitecture: If the kind is neither built in nor declared, its declaration is refused (it shadows
        a built-in kind, is made twice, cannot be imported, or is not of an architecture of that kind), the rest of
        the config is not what that kind writes, or its code fails on it, or it asks for more than `MAX_PARAMETERS`.
        One declaration that shadows a built-in kind has every kind refused that is not built in: it names the package
        to remove.
    """
    kind = config.get("kind")
    if not isinstance(kind, str):
        raise UnknownArchitecture(kind, reason="a kind is text")
    form = _BUILT_IN.get(kind)
    if form is not None:
        return form.from_config(config)
    # Built-in kinds refuse by name what they cannot be made of, and what is too large before anything is allocated; an
    # installed one may do neither, and a stranger's config must not end this process.
    try:
        architecture: Architecture = _installed(kind).from_config(config)
        num_parameters = architecture.num_parameters
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise UnknownArchitecture(kind, reason=f"it cannot be made of its config: {exc!r}") from exc
    if num_parameters > MAX_PARAMETERS:
        raise UnknownArchitecture(kind, reason=f"more than {MAX_PARAMETERS} parameters")
    return architecture


@functools.cache
def _declared() -> Mapping[str, tuple[importlib.metadata.EntryPoint, ...]]:
    """Declarations by kind, none of them imported. Reading them takes milliseconds, and a peer may ask often."""
    declared: dict[str, tuple[importlib.metadata.EntryPoint, ...]] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        declared[point.name] = (*declared.get(point.name, ()), point)
    return declared


def _installed(kind: str) -> type[Architecture]:
    """The class an installed package declares for a kind that is not built in."""
    declared = _declared()
    shadowing = sorted(declared.keys() & _BUILT_IN.keys())
    if shadowing:
        packages = _packages(declared[shadowing[0]])
        raise UnknownArchitecture(shadowing[0], reason=f"{packages} would shadow a built-in kind")
    points = declared.get(kind, ())
    if not points:
        raise UnknownArchitecture(kind, reason=f"known kinds: {', '.join(sorted(declared.keys() | _BUILT_IN.keys()))}")
    if len(points) > 1:
        raise UnknownArchitecture(kind, reason=f"{_packages(points)} declare it more than once")
    try:
        form: object = points[0].load()
    except (ImportError, AttributeError) as exc:
        raise UnknownArchitecture(kind, reason=f"{_packages(points)} cannot be imported: {exc}") from exc
    if not (inspect.isclass(form) and issubclass(form, Architecture)) or inspect.isabstract(form):
        raise UnknownArchitecture(kind, reason=f"{points[0].value} of {_packages(points)} is no architecture")
    if getattr(form, "kind", None) != kind:
        raise UnknownArchitecture(kind, reason=f"{points[0].value} of {_packages(points)} is not of this kind")
    return form


def _packages(points: tuple[importlib.metadata.EntryPoint, ...]) -> str:
    names = sorted(point.dist.name if point.dist else point.value for point in points)
    return f"package {', '.join(names)}"
