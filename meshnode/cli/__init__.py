"""The ``meshnode`` command: results on stdout, talk on stderr, exit codes that name the kind of failure.

A command imports what it needs when it runs: all but ``run``, ``demo`` and ``init --mesh`` only talk to the
daemon and answer in under half a second, which importing torch alone would take several times over.
"""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line of this process and exit with one of `meshnode.errors.ExitCode`."""
    try:
        from meshnode.cli.app import run_line  # noqa: PLC0415 - Ctrl+C may come before everything is loaded

        code = run_line(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
