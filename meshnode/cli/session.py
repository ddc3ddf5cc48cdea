"""What one invocation of the command was told by its global options."""

import dataclasses

import typer

from meshnode.cli.client import ApiClient
from meshnode.cli.output import Output
from meshnode.home import Home

__all__ = ["Session"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """The node's folder, the way to its daemon, and the way to the person or program that asked."""

    home: Home
    api_url: str | None
    """The daemon's URL if ``--api`` named one; None means the one that the home's daemon wrote down."""
    output: Output
    log_format: str | None = None
    """How the daemon's log lines look; None leaves the settings their word."""

    @staticmethod
    def of(context: typer.Context) -> "Session":
        """The session that the global options' callback put into the context."""
        session = context.obj
        assert isinstance(session, Session)
        return session

    def client(self) -> ApiClient:
        """A client of the daemon. Raises DaemonNotRunning, or Refused if its key cannot be read."""
        return ApiClient.of_home(self.home, self.api_url)
