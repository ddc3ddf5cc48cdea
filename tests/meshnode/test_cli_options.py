"""Global options may stand anywhere before a ``--``, and nothing else is moved."""

import pytest

from meshnode.cli.options import in_order


@pytest.mark.parametrize(
    ("line", "globals_", "command"),
    [
        ("status", "", "status"),
        ("--json status", "--json", "status"),
        ("status --json", "--json", "status"),
        ("peers --home /a ls -q", "--home /a -q", "peers ls"),
        ("peers ls --home=/a", "--home=/a", "peers ls"),
        ("status --api http://x", "--api http://x", "status"),
        ("run --api 127.0.0.1:1 --json", "--json", "run --api 127.0.0.1:1"),
        ("run --api=127.0.0.1:1", "", "run --api=127.0.0.1:1"),
        ("--api http://x run", "--api http://x", "run"),
        ("infer --input run --api http://x", "--api http://x", "infer --input run"),
        ("infer -- --json --home /a", "", "infer -- --json --home /a"),
        ("status --home", "--home", "status"),
        ("--jsonl -qv", "", "--jsonl -qv"),
        ("", "", ""),
    ],
)
def test_globals_come_first(line: str, globals_: str, command: str) -> None:
    assert in_order(line.split()) == (globals_.split(), command.split())
