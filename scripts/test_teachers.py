"""Runs the tests that need timm, torchvision and transformers, and keeps what came out of them.

Usage: make test-teachers. The result goes to docs/results/test_teachers.json if every test passed.
"""

import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs" / "results" / "test_teachers.json"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "huggingface-hub", "safetensors", "numpy")


class Outcomes:
    """Counts the tests by how they came out."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for the setup, the call and the teardown of each test."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self.counts[report.outcome] += 1


def main() -> int:
    """Exits as pytest does, and with 1 if a test was skipped: a library is missing then."""
    for package in PACKAGES:
        importlib.metadata.version(package)
    torch.set_num_threads(1)
    outcomes = Outcomes()
    began = time.monotonic()
    code = int(pytest.main([str(ROOT / "tests" / "teachers"), "-m", "teachers", "-q"], plugins=[outcomes]))
    seconds = time.monotonic() - began
    if code or outcomes.counts["skipped"] or not outcomes.counts["passed"]:
        print(f"test_teachers: {RESULT.name} is left as it was", file=sys.stderr)
        return code or 1
    document = {
        "schema": "modulemesh.tests/1",
        "command": "make test-teachers",
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "tests": outcomes.counts,
        "seconds": round(seconds, 1),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
