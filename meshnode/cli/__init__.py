"""The ``meshnode`` command: results on stdout, talk on stderr, exit codes that name the kind of failure.

A command imports what it needs when it runs: all but ``run``, ``demo`` and ``init --mesh`` only talk to the
daemon and answer in under half a second, which importing torch alone would take several times over.
"""

from meshnode.cli.app import main

__all__ = ["main"]
