"""Every setting, metric, limit, event and exit code that there is stands in the documentation."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode.errors import ExitCode
from meshnode.gauges import documented_metrics
from meshnode.settings.config import settings_there_are
from meshnode.trainer.history import FAILED
from meshnode.trainer.service import ASSESSED, LEARNED

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def words_in_code(page: str) -> set[str]:
    """What stands in backquotes on a page."""
    return set(re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()))


def test_the_tables_of_the_pages_are_those_of_the_code() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "tables.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_every_setting_is_documented() -> None:
    page = (DOCS / "config.md").read_text()
    for setting in settings_there_are():
        section = page.partition(f"### [{setting.section}]")[2].partition("\n### ")[0]
        assert f"`{setting.key}`" in section, setting.name


def test_every_metric_is_documented() -> None:
    words = words_in_code("metrics.md")
    assert {metric.name for metric in documented_metrics()} <= words


def test_every_event_that_the_node_emits_is_documented_and_no_other() -> None:
    emitted = set()
    for path in (ROOT / "meshnode").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit":
                assert node.args, path
                match node.args[0]:
                    case ast.Constant(value=str(kind)):
                        emitted.add(kind)
                    case ast.JoinedStr():  # the trainer's, by outcome
                        emitted |= {f"task_{outcome}" for outcome in (ASSESSED, FAILED, LEARNED)}
    events = (DOCS / "mqtt.md").read_text().partition("\n## Events\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", events, re.MULTILINE))
    assert emitted == documented


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_documented(code: ExitCode) -> None:
    assert re.search(rf"^\| {int(code)} \|", (DOCS / "commands.md").read_text(), re.MULTILINE)
