"""The layers are those of docs/architecture.md, and a line that breaks one is found.

Each violation is planted in a copy of the packages, so that a contract which has lost its teeth fails here.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("meshnode", "protocol", "experts")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the packages in this folder against the contracts of its pyproject.toml."""
    program = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as check; check()"
    command = [sys.executable, "-c", program, "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def test_the_contracts_hold() -> None:
    ended = lint_imports(ROOT)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("protocol/limits.py", "import torch", "protocol: bytes in, bytes out"),
        ("protocol/limits.py", "import experts.architectures.base", "meshnode composes"),
        ("experts/architectures/base.py", "import asyncio", "experts: tensors in, tensors out"),
        ("meshnode/transport/pool.py", "import meshnode.view", "inside meshnode, imports go down"),
        ("meshnode/view.py", "import meshnode.founding", "can open training data"),
        ("meshnode/view.py", "import hivemind", "only meshnode.transport knows hivemind"),
        ("meshnode/view.py", "import fastapi", "only meshnode.api knows the web framework"),
        ("meshnode/view.py", "import aiomqtt", "only meshnode.mqtt knows the MQTT client"),
    ],
)
def test_a_line_that_breaks_a_layer_is_found(tmp_path: Path, module: str, line: str, contract: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    ended = lint_imports(tmp_path)
    assert ended.returncode == 1, ended.stdout
    broken = [text for text in ended.stdout.splitlines() if " BROKEN" in text]
    assert any(contract in text for text in broken), ended.stdout
