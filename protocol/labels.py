"""Class names in a mesh that tells domains or tasks apart: ``CONTEXT/CLASS``.

The same class may be of several domains or tasks. Under such a name it is a class of its own to experts, statistics,
contributions and whatever else goes by classes; only who routes and who answers take the name apart.
"""

from collections.abc import Iterable
from typing import Final

from protocol import limits
from protocol.errors import MalformedIdentifier

__all__ = ["CONTEXT_SEPARATOR", "class_of", "context_of", "contexts_of", "label_in"]

CONTEXT_SEPARATOR: Final = "/"


def label_in(context: str, name: str) -> str:
    """The name of a class in a domain or task.

    Raises:
        MalformedIdentifier: The context is empty or has a separator, or the whole is too long.
    """
    label = f"{context}{CONTEXT_SEPARATOR}{name}"
    if not context or CONTEXT_SEPARATOR in context:
        raise MalformedIdentifier("class name", label, f"a domain or task has a name without {CONTEXT_SEPARATOR!r}")
    if len(label) > limits.MAX_CLASS_NAME_CHARS:
        reason = f"with its domain or task a class name has at most {limits.MAX_CLASS_NAME_CHARS} characters"
        raise MalformedIdentifier("class name", label, reason)
    return label


def context_of(label: str) -> str:
    """The domain or task; empty if the name has none."""
    context, separator, _ = label.partition(CONTEXT_SEPARATOR)
    return context if separator else ""


def class_of(label: str) -> str:
    """The class as people name it."""
    _, separator, name = label.partition(CONTEXT_SEPARATOR)
    return name if separator else label


def contexts_of(labels: Iterable[str]) -> tuple[str, ...]:
    """The domains or tasks of these, sorted, each once."""
    return tuple(sorted({context_of(label) for label in labels}))
