"""What every benchmark prints with `--json` and keeps under docs/results/: one document, one schema."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshnode.report.making import bench_document, rounded

__all__ = ["RESULTS", "bench_document", "rounded", "say", "write_document"]

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def write_document(document: Mapping[str, Any], name: str) -> Path:
    """Keep the document as ``docs/results/NAME.json``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def say(text: str) -> None:
    """Progress, for people, beside what is printed for programs."""
    print(text, file=sys.stderr, flush=True)
