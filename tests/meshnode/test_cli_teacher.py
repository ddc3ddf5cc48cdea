"""``meshnode teacher``: where a teacher can be cut, asked of the real command."""

from pathlib import Path

import pytest
import torch
from cli_process import meshnode

from experts.teachers.cnn import untrained_cnn
from meshnode.errors import ExitCode


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a teacher in a file."""
    path = tmp_path_factory.mktemp("teachers") / "cnn.safetensors"
    network = untrained_cnn("ab", channels=1, pixels=8, generator=torch.Generator().manual_seed(0))
    path.write_bytes(network.to_bytes())
    return f"file:{path}"


def test_the_table_has_a_line_for_every_cut(teacher: str) -> None:
    ended = meshnode("teacher", "sections", teacher)
    assert (ended.code, ended.err) == (ExitCode.OK, "")
    header, *lines = [line.split() for line in ended.out.splitlines()]
    assert header == ["CUT", "OUTPUT", "PARAMETERS", "MFLOPS", "VALID", "PORTABLE"]
    assert lines[0] == ["layers.0", "16x4x4", "416", "0.013", "yes", "yes"]
    assert lines[-1][:2] == ["layers", "2"]
    assert len(lines) == 11


def test_for_programs_it_is_one_document(teacher: str) -> None:
    document = meshnode("--json", "teacher", "sections", teacher).document
    assert document["schema"] == "meshnode.teacher-sections/1"
    assert document["teacher"] == teacher
    assert len(document["digest"]) == 64
    assert document["num_classes"] == 2
    assert document["input"]["pixels"] == 8
    assert document["sections"][0] == {
        "cut": "layers.0",
        "output_shape": [16, 4, 4],
        "num_parameters": 416,
        "flops": 12_800,
        "valid": True,
        "portable": True,
    }


def test_classes_may_come_from_a_file(teacher: str, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\n")
    named = meshnode("--json", "teacher", "sections", teacher, "--classes", names).document
    assert named["digest"] != meshnode("--json", "teacher", "sections", teacher).document["digest"]


@pytest.mark.parametrize("name", ["file:/nowhere/cnn.safetensors", "package:other", "cnn", "timm:"])
def test_a_teacher_that_is_not_here_is_an_absent_resource(name: str) -> None:
    ended = meshnode("--json", "teacher", "sections", name)
    assert ended.code == ExitCode.RESOURCE_ABSENT
    assert ended.document["error"]["code"] == "resource_absent"
    assert "docs/teachers.md" in ended.document["error"]["hint"]
