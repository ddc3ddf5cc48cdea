"""The command answers at once because it loads nothing that it does not need."""

import json
from pathlib import Path

import numpy as np
import pytest
from api_fake_node import FakeNode, serving_home
from cli_process import python

HEAVY = {"torch", "hivemind", "fastapi", "starlette", "uvicorn", "sklearn", "matplotlib", "scipy"}
# Runs the command in this interpreter, then tells on stderr what it left loaded.
PROGRAM = """
import json, sys
from meshnode.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "run --help",
        "version",
        "status",
        "id",
        "peers ls",
        "experts ls --local",
        "experts pull ab",
        "experts import --help",
        "teacher sections --help",
        "infer --input {image} --explain",
        "why",
        "train history",
        "config show",
    ],
)
def test_nothing_heavy_is_loaded(tmp_path: Path, line: str) -> None:
    image = tmp_path / "image.npy"
    np.save(image, np.zeros((1, 4, 4), np.uint8))
    with serving_home(tmp_path / "home", FakeNode(pull_steps=[{"state": "hosted"}])) as home:
        ended = python(PROGRAM, "--home", home.path, *line.format(image=image).split())
    assert ended.code == 0, ended.err
    loaded = set(json.loads(ended.err.splitlines()[-1]))
    assert loaded & HEAVY == set()
    assert "meshnode" in loaded


def test_weights_are_loaded_without_torchs_compiler() -> None:
    """Its symbolic shapes bring all of sympy, into the daemon and into the trainer."""
    program = """
import sys
from experts.checkpoint import load_weights, weights_to_bytes
from experts.architectures.mlp import MlpArchitecture
module = MlpArchitecture(feature_dim=8, hidden=4, num_classes=2).build("seed")
load_weights(module, weights_to_bytes(module))
assert "torch" in sys.modules
assert not {"sympy", "torch._dynamo"} & set(sys.modules)
"""
    ended = python(program)
    assert ended.code == 0, ended.err
