"""What is examined: a home, its settings, and what its daemon says of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from meshnode.doctor.holder import Holder, find_holder
from meshnode.errors import ConfigInvalid, NodeError
from meshnode.home import Home
from meshnode.settings.config import NodeConfig, load_config

__all__ = ["Ask", "Subject"]

Ask = Callable[[], Mapping[str, Any]]
"""Gets the daemon's ``meshnode.status/1``. Raises NodeError if it does not answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Taken in once, so that all checks speak of the same moment."""

    home: Home
    config: NodeConfig | None
    """None if the settings cannot be followed: what depends on them is then not looked at."""
    config_error: ConfigInvalid | None
    """Why there is no ``config``."""
    holder: Holder | None
    """The home's daemon; None if none runs."""
    status: Mapping[str, Any] | None
    """What the daemon says of itself."""
    silence: NodeError | None
    """Why a daemon that runs has said nothing."""

    @classmethod
    def take_in(cls, home: Home, ask: Ask) -> Self:
        """Load the settings, see who holds the home and, only if somebody does, ask."""
        config = config_error = status = silence = None
        try:
            config = load_config(home)
        except ConfigInvalid as exc:
            config_error = exc
        try:
            holder = find_holder(home)
        except OSError:  # another user's: the check of files says so
            holder = None
        if holder is not None:
            try:
                status = ask()
            except NodeError as exc:
                silence = exc
        return cls(home=home, config=config, config_error=config_error, holder=holder, status=status, silence=silence)

    def told(self, part: str) -> Mapping[str, Any]:
        """A part of the daemon's status; empty if it told nothing of the kind."""
        value = (self.status or {}).get(part)
        return value if isinstance(value, Mapping) else {}
