"""A benchmark that measures everything in one go, as a command: its options, its document, its exit code."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_document import RESULTS, write_document

from experts.errors import ExpertsError
from meshnode.errors import ExitCode, NodeError

__all__ = ["Bench"]


class Bench(NamedTuple):
    """What differs from one to the other."""

    name: str
    """Of its script and of the document that it keeps."""
    about: str
    """What ``--help`` says first."""
    quick_help: str
    """What is left out with ``--quick``, and how long it takes."""
    measure: Callable[[argparse.Namespace], dict[str, Any]]
    """Makes the document; progress goes to stderr."""
    table: Callable[[Mapping[str, Any]], str]
    """The document for people."""
    draw: Callable[[Mapping[str, Any], Path], None]
    """Its picture."""
    has_seed: bool = True
    """Whether the first of the seeds can be chosen."""

    def main(self, arguments: Sequence[str]) -> int:
        """Run the script; returns its exit code: 10 if a target is missed, 1 if something could not be measured."""
        options = self._parse(arguments)
        torch.set_num_threads(1)
        try:
            document = self.measure(options)
        except (ExpertsError, NodeError, OSError) as failure:
            print(f"not measured: {failure}", file=sys.stderr)
            return ExitCode.FAILURE
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
        if options.write:
            self.draw(document, write_document(document, self.name).with_suffix(".png"))
        print(json.dumps(document, indent=2) if options.json else self.table(document))
        targets = document.get("targets", {}).values()
        return ExitCode.OK if all(target["met"] for target in targets) else ExitCode.CHECK_FAILED

    def _parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.about)
        parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
        parser.add_argument("--quick", action="store_true", help=self.quick_help)
        kept = f"also put it into {RESULTS.name}/{self.name}.json, with a plot"
        parser.add_argument("--write", action="store_true", help=kept)
        if self.has_seed:
            seed_help = "the first of all that are used (0)"
            parser.add_argument("--seed", type=int, default=0, metavar="N", help=seed_help)
        options = parser.parse_args(arguments)
        if options.write and options.quick:
            parser.error("--write is for figures at full size: leave out --quick")
        return options
