"""What the daemon says on stderr: one line an event, ours at the level asked for, libraries' only when they fail."""

import logging
import sys

__all__ = ["configure_logs"]


def configure_logs(level: str) -> None:
    """Send this process's log lines of `level` (debug, info, warning, error) and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    logging.getLogger("meshnode").setLevel(level.upper())
