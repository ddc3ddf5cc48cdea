"""What the daemon says on stderr: one line an event, for people on a terminal, JSON for programs.

Our own lines are structlog's, with their facts as names and values; those of libraries, hivemind's p2pd among them, go
the same way. A secret that was made known to `keep_secret` is in no line, whoever wrote it.
"""

import json
import logging
import os
import re
import sys
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.dev import plain_traceback
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, ExcInfo

from meshnode.printable import printable

__all__ = ["LogFormat", "LogSettings", "configure_logs", "get_logger", "keep_secret", "log_settings"]

LogFormat = Literal["auto", "text", "json"]

_P2PD_READER = "hivemind.p2p.p2p_daemon"

# Not by word boundaries: the end of a colour's escape sequence is a letter.
_DIGEST = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")

_secrets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How lines are written."""

    level: str = "warning"
    """debug, info, warning or error: from here on up. Of libraries, warnings and up are shown, with debug all."""
    format: Literal["text", "json"] = "json"


_settings = LogSettings()


def get_logger(name: str) -> BoundLogger:
    """A logger whose lines carry their facts by name: ``log.info("task learned", task="1")``."""
    # Configured by itself, not for the process: a program that uses `MeshClient` may have a structlog of its own.
    return cast(
        "BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[structlog.stdlib.filter_by_level, ProcessorFormatter.wrap_for_formatter],
            wrapper_class=BoundLogger,
        ),
    )


def keep_secret(value: str) -> None:
    """From now on, write ``[secret]`` wherever a line would hold this value, as it is or escaped.

    One of fewer than four characters is no secret, and masking it would spoil every line.
    """
    global _secrets  # noqa: PLW0603 - replaced, not changed: other threads are writing lines meanwhile
    if len(value) >= 4:
        escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
        _secrets |= {value, printable(value), *escaped}


def log_settings() -> LogSettings:
    """What `configure_logs` has set up, for a child process to do the same."""
    return _settings


def configure_logs(level: str, form: LogFormat = "auto") -> LogSettings:
    """Send this process's log lines to stderr.

    Args:
        level: As in `LogSettings`.
        form: ``auto`` is text on a terminal, else JSON.

    Returns: What holds from now on.
    """
    global _settings  # noqa: PLW0603 - there is one stderr
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    _settings = LogSettings(level, form)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_text() if form == "text" else _json())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.getLogger("meshnode").setLevel(level.upper())
    return _settings


class _Formatter(ProcessorFormatter):
    """The library's, and nothing secret."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, but for the trace of an exception."""
        line = super().format(record)
        for secret in sorted(_secrets, key=len, reverse=True):  # an escaped form may hold a shorter one
            line = line.replace(secret, "[secret]")
        return line


def _formatter(*processors: structlog.typing.Processor) -> logging.Formatter:
    return _Formatter(
        processors=[
            _name_the_origin,
            ProcessorFormatter.remove_processors_meta,
            structlog.processors.add_log_level,
            *processors,
        ]
    )


def _json() -> logging.Formatter:
    return _formatter(
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=str),
    )


def _text() -> logging.Formatter:
    colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    return _formatter(
        _escape,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(
            colors=colours, pad_event_to=20, sort_keys=False, exception_formatter=_plain_trace
        ),
        _shorten,
    )


def _name_the_origin(_logger: object, _method: str, fields: EventDict) -> EventDict:
    """Which logger a library's line came through; what hivemind reads from p2pd's output is p2pd's."""
    record: logging.LogRecord = fields["_record"]
    if not record.name.startswith("meshnode"):
        by_p2pd = record.name == _P2PD_READER and hasattr(record, "caller")
        fields["logger"] = "p2pd" if by_p2pd else record.name
    return fields


def _plain_trace(lines: TextIO, exc_info: ExcInfo) -> None:
    """The trace of an exception, whose words may come from a peer."""
    trace = StringIO()
    plain_traceback(trace, exc_info)
    lines.write("\n".join(map(printable, trace.getvalue().splitlines())))


def _shorten(_logger: object, _method: str, line: Any) -> str:
    """Digests by their first twelve digits, as the commands show them: enough for people to tell them apart."""
    return _DIGEST.sub(r"\1", str(line))


def _escape(_logger: object, _method: str, fields: EventDict) -> EventDict:
    """Names and errors come from other peers: an escape sequence in one must not steer the terminal."""
    return {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
