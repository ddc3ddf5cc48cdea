"""Benchmarks run again: what is kept, what is not run twice, and what a failure or an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))  # its modules are no package

import reproduce
from reproduce_cells import FULL, QUICK, ROOT, Cell, hours, source_digest
from reproduce_run import run_cells

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

PROGRAM = """
import json, pathlib, sys
marks, code, is_met = pathlib.Path({marks!r}), {code}, {is_met}
marks.write_text(marks.read_text() + "x" if marks.exists() else "x")
print("half way", file=sys.stderr)
print(json.dumps({{
    "schema": "modulemesh.bench/1", "command": "python elsewhere.py", "seeds": [0], "machine": {{"cpus": 2}},
    "figures": {{"speed": 2.0}}, "targets": {{"speed": {{"target": ">= 1", "met": is_met}}}},
}}))
sys.exit(code)
"""
"""A benchmark that leaves a mark whenever it is run."""


def _cell(folder: Path, name: str, *, code: int = 0, is_met: bool = True, needs: Sequence[str] = ()) -> Cell:
    program = folder / f"{name}.py"
    program.write_text(PROGRAM.format(marks=str(folder / f"{name}.runs"), code=code, is_met=is_met), encoding="utf-8")
    return Cell(name=name, arguments=(str(program),), minutes=0.1, needs=needs)


def _times_run(folder: Path, name: str) -> int:
    marks = folder / f"{name}.runs"
    return len(marks.read_text(encoding="utf-8")) if marks.exists() else 0


def _run(cells: Sequence[Cell], out: Path, digest: str = "one", **options: Any) -> list[str]:
    return [outcome.state for outcome in run_cells(cells, out, digest=digest, tell=lambda _: None, **options)]


def test_what_is_done_is_not_run_again_until_the_source_or_the_arguments_change(tmp_path: Path) -> None:
    cell, out = _cell(tmp_path, "first"), tmp_path / "out"
    assert _run([cell], out) == ["done"]
    assert _run([cell], out) == ["cached"]
    assert _times_run(tmp_path, "first") == 1
    assert _run([cell], out, digest="two") == ["done"]
    other = Cell(name=cell.name, arguments=(*cell.arguments, "--more"), minutes=0.1)
    assert _run([other], out, digest="two") == ["done"]
    assert _times_run(tmp_path, "first") == 3


def test_a_document_says_the_command_that_was_really_run(tmp_path: Path) -> None:
    cell = _cell(tmp_path, "first")
    _run([cell], tmp_path / "out")
    document = json.loads((tmp_path / "out" / "first.json").read_text(encoding="utf-8"))
    assert document["command"] == cell.command
    assert document["figures"] == {"speed": 2.0}


@pytest.mark.parametrize("damage", ["document lost", "document cut off", "note lost"])
def test_a_cell_of_which_something_is_lost_is_run_again(tmp_path: Path, damage: str) -> None:
    cell, out = _cell(tmp_path, "first"), tmp_path / "out"
    _run([cell], out)
    kept = out / ("cells/first.json" if damage == "note lost" else "first.json")
    if damage == "document cut off":
        kept.write_text(kept.read_text(encoding="utf-8")[:40], encoding="utf-8")
    else:
        kept.unlink()
    assert _run([cell], out) == ["done"]
    assert _times_run(tmp_path, "first") == 2


def test_a_failing_cell_is_named_with_its_last_words_and_the_others_go_on(tmp_path: Path) -> None:
    broken = Cell(name="broken", arguments=("-c", "import sys; sys.exit('no data set here')"), minutes=0.1)
    wordless = Cell(name="wordless", arguments=("-c", "print('not a document')"), minutes=0.1)
    cells = [broken, wordless, _cell(tmp_path, "last")]
    outcomes = run_cells(cells, tmp_path / "out", digest="one", tell=lambda _: None)
    assert [outcome.state for outcome in outcomes] == ["failed", "failed", "done"]
    assert "ended with 1" in outcomes[0].reason
    assert "no data set here" in outcomes[0].reason
    assert "no JSON" in outcomes[1].reason
    assert not (tmp_path / "out" / "broken.json").exists()


def test_a_failure_takes_away_the_older_result_and_is_tried_again(tmp_path: Path) -> None:
    cell, out = _cell(tmp_path, "first"), tmp_path / "out"
    _run([cell], out)
    _cell(tmp_path, "first", code=1)
    assert _run([cell], out, digest="two") == ["failed"]
    assert not (out / "first.json").exists()
    _cell(tmp_path, "first")
    assert _run([cell], out, digest="two") == ["done"]


def test_a_cell_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    slow = Cell(name="slow", arguments=("-c", "import time; time.sleep(600)"), minutes=0.1)
    [outcome] = run_cells([slow], tmp_path / "out", digest="one", tell=lambda _: None, longest_s=0.5)
    assert outcome.state == "failed"
    assert "longer than" in outcome.reason
    assert not [one for one in psutil.Process().children() if "time.sleep(600)" in " ".join(one.cmdline())]


def test_cells_that_resume_share_their_runs_as_long_as_the_source_is_the_same(tmp_path: Path) -> None:
    program = tmp_path / "resuming.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "runs = pathlib.Path(sys.argv[sys.argv.index('--resume') + 1])\n"
        "found = runs.exists()\n"
        "runs.mkdir(parents=True, exist_ok=True)\n"
        "print(json.dumps({'schema': 'modulemesh.bench/1', 'command': '', 'seeds': [], 'machine': {},\n"
        "                  'figures': {'found': found}}))\n"
    )
    part, whole = (
        Cell(name=name, arguments=(str(program), *more), minutes=0.1, resumes=True, is_part=bool(more))
        for name, more in (("part", ["--some"]), ("whole", []))
    )
    out = tmp_path / "out"
    assert _run([part, whole], out) == ["done", "done"]
    assert _run([part, whole], out) == ["cached", "cached"]
    assert [path.name for path in out.glob("*.json")] == ["whole.json"]  # what a report is made of
    document = json.loads((out / "whole.json").read_text(encoding="utf-8"))
    assert document["figures"] == {"found": True}
    assert document["command"] == whole.command
    assert _run([whole], out, digest="another") == ["done"]
    assert json.loads((out / "whole.json").read_text(encoding="utf-8"))["figures"] == {"found": False}


def test_a_cell_whose_packages_are_missing_is_no_failure(tmp_path: Path) -> None:
    cell = _cell(tmp_path, "first", needs=("no_such_package_of_anyone",))
    [outcome] = run_cells([cell], tmp_path / "out", digest="one", tell=lambda _: None)
    assert outcome.state == "impossible here"
    assert "no_such_package_of_anyone" in outcome.reason
    assert _times_run(tmp_path, "first") == 0


def test_an_interrupted_run_ends_its_cell_and_goes_on_from_there(tmp_path: Path) -> None:
    begun, first = tmp_path / "begun", _cell(tmp_path, "first")
    waits = f"import os, pathlib, time; pathlib.Path({str(begun)!r}).write_text(str(os.getpid())); time.sleep(600)"
    program = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import reproduce
from reproduce_cells import Cell
cells = [Cell(name="first", arguments=({first.arguments[0]!r},), minutes=0.1),
         Cell(name="second", arguments=("-c", {waits!r}), minutes=0.1)]
sys.exit(reproduce.main(["--all", "--out", {str(tmp_path / "out")!r}], full=cells, quick=cells))
"""
    running = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    try:
        deadline_s = time.monotonic() + 60
        while not (begun.exists() and begun.read_text(encoding="utf-8")) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, words = running.communicate(timeout=40)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert "goes on" in words
    assert not psutil.pid_exists(int(begun.read_text(encoding="utf-8")))
    assert _run([first, _cell(tmp_path, "second")], tmp_path / "out", digest=source_digest()) == ["cached", "done"]


def test_the_command_reports_and_its_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, missing = _cell(tmp_path, "good"), _cell(tmp_path, "missing", code=10, is_met=False)
    broken = Cell(name="broken", arguments=("-c", "raise SystemExit(3)"), minutes=0.1)

    def main(how: str, cells: Sequence[Cell]) -> tuple[int, dict[str, Any]]:
        arguments = [how, "--json", "--out", str(tmp_path / f"out{len(cells)}{how}")]
        code = reproduce.main(arguments, full=cells, quick=cells)
        return code, json.loads(capsys.readouterr().out)

    assert main("--all", [good])[0] == 0
    code, document = main("--all", [good, missing])
    assert code == 10
    assert document["report"]["targets"] == {"met": 1, "missed": ["missing: speed"]}
    assert Path(document["report"]["html"]).is_file()
    assert main("--quick", [good, missing])[0] == 0
    code, document = main("--quick", [good, missing, broken])
    assert code == 1
    assert [cell["state"] for cell in document["cells"]] == ["done", "done", "failed"]
    assert document["report"]["results"] == ["good", "missing"]


def test_quick_and_full_results_are_kept_apart_and_away_from_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = _cell(tmp_path, "good")
    assert reproduce.main(["--quick"], full=[cell], quick=[cell]) == 0
    assert reproduce.main(["--only", "good"], full=[cell], quick=[cell]) == 0
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("good.json") if "cells" not in path.parts)
    assert found == ["reproduce-out/all/good.json", "reproduce-out/quick/good.json"]


def test_wrong_lines_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    cell = _cell(tmp_path, "good")
    for line in ([], ["--only", "nobody"], ["--all", "--quick"]):
        with pytest.raises(SystemExit) as refused:
            reproduce.main(line, full=[cell], quick=[cell])
        assert refused.value.code == 2
    assert _times_run(tmp_path, "good") == 0


def test_the_list_runs_nothing_and_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [_cell(tmp_path, "good"), _cell(tmp_path, "other")]
    assert reproduce.main(["--list", "--json"], full=cells, quick=cells) == 0
    document = json.loads(capsys.readouterr().out)
    assert [cell["name"] for cell in document["cells"]] == ["good", "other"]
    assert document["hours"] == pytest.approx(0.2 / 60)
    assert _times_run(tmp_path, "good") == 0


def test_the_digest_follows_names_and_contents_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    module = tmp_path / "scripts" / "one.py"
    module.write_text("a = 1\n", encoding="utf-8")
    digests = {source_digest(tmp_path)}
    (tmp_path / "scripts" / "notes.txt").write_text("nothing that runs", encoding="utf-8")
    assert {source_digest(tmp_path)} == digests
    module.write_text("a = 2\n", encoding="utf-8")
    digests.add(source_digest(tmp_path))
    os.replace(module, module.with_name("two.py"))
    digests.add(source_digest(tmp_path))
    assert len(digests) == 3


def test_the_cells_there_are_name_scripts_that_exist_and_fit_into_their_time() -> None:
    for cells in (FULL, QUICK):
        assert len({cell.name for cell in cells}) == len(cells)
        for cell in cells:
            assert (ROOT / cell.arguments[0]).is_file(), cell.name
            assert not {"--write"} & set(cell.arguments)
            assert cell.minutes < 30
    assert all("--quick" in cell.arguments for cell in QUICK)
    assert hours(QUICK) * 60 <= 8


def test_the_script_itself_runs_from_anywhere(tmp_path: Path) -> None:
    ended = subprocess.run(
        [SCRIPTS / "reproduce", "--list", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert {cell["name"] for cell in json.loads(ended.stdout)["cells"]} == {cell.name for cell in FULL}
