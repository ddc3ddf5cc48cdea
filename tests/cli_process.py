"""The real ``meshnode`` command as a process of its own, with an environment that says nothing."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ended", "meshnode", "python"]


@dataclass(frozen=True)
class Ended:
    """How a process ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document that is all of stdout."""
        assert self.out.count("\n") == 1, self.out
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


def meshnode(*arguments: object, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ended:
    """Run ``python -m meshnode`` with these arguments."""
    return _run([sys.executable, "-m", "meshnode", *map(str, arguments)], stdin, env)


def python(program: str, *arguments: object, env: dict[str, str] | None = None) -> Ended:
    """Run a Python program given as text."""
    return _run([sys.executable, "-c", program, *map(str, arguments)], b"", env)


def _run(command: list[str], stdin: bytes, env: dict[str, str] | None) -> Ended:
    silent = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        silent.pop(name, None)
    # A home of last resort, so that a test which forgets to name one never touches the user's.
    silent |= {"MESHNODE_HOME": str(Path(os.devnull) / "no-home"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, input=stdin, capture_output=True, timeout=60, env=silent | (env or {}), check=False)
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
