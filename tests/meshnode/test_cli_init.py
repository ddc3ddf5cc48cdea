"""Making a node's folder: complete, readable by its owner alone, and never made twice."""

import stat
import tomllib
from pathlib import Path

import pytest
import torch
from cli_process import meshnode, python
from mesh_in_memory import digits

from experts.data.npz import save_task
from meshnode.cli.starter_config import starter_config
from meshnode.home import Home
from meshnode.mesh import load_mesh
from meshnode.settings.config import NodeConfig, load_config
from meshnode.state.state import State

ADDRESS = "/ip4/192.0.2.1/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"

# Runs the command with founding replaced by one that only says what it was asked for.
FOUNDING = """
import sys, types
from pathlib import Path
from meshnode.cli import main
founding = types.ModuleType("meshnode.founding")
def found_mesh(home, asked):
    told = f"{asked.name} {asked.data} {asked.trunk} {asked.pixels}"
    told += f" {asked.expert} {asked.expert_settings} {asked.expert_budget}"
    (home.path / "asked").write_text(told)
    return "cd" * 32
founding.found_mesh = found_mesh
founding.Founding = lambda **fields: types.SimpleNamespace(**fields)
sys.modules["meshnode.founding"] = founding
main()
"""


def test_init_makes_settings_and_identity_for_the_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "new" / "home")
    ended = meshnode("--home", home.path, "--json", "init", "--name", "quiet-owl", "--join", ADDRESS)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["schema"] == "meshnode.init/1"
    assert ended.document["config"]["created"] is ended.document["identity"]["created"] is True
    assert ended.document["mesh"] is None
    config = load_config(home)
    assert (config.node.name, config.net.join) == ("quiet-owl", (ADDRESS,))
    for path in home.path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    asked = meshnode("--home", home.path, "--json", "id")
    assert asked.document["peer_id"] == ended.document["identity"]["peer_id"]
    assert asked.document["addresses"] == []


def test_init_again_keeps_everything_and_says_so(tmp_path: Path) -> None:
    first = meshnode("--home", tmp_path, "--json", "init", "--name", "quiet-owl")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = meshnode("--home", tmp_path, "--json", "init")
    assert (again.code, again.err) == (0, "")
    assert again.document["config"]["created"] is again.document["identity"]["created"] is False
    assert again.document["identity"]["peer_id"] == first.document["identity"]["peer_id"]
    renamed = meshnode("--home", tmp_path, "init", "--name", "another")
    assert renamed.code == 0
    assert "left as it is" in renamed.err
    assert "kept as it was" in renamed.out
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("option", "value"), [("--name", "a name"), ("--name", ""), ("--join", "192.0.2.1:4001")])
def test_init_refuses_unusable_values_before_it_writes(tmp_path: Path, option: str, value: str) -> None:
    ended = meshnode("--home", tmp_path / "home", "--json", "init", option, value)
    assert ended.code == 3
    assert ended.document["error"]["code"] == "config_invalid"
    assert not (tmp_path / "home").exists()


def test_the_settings_written_are_the_defaults(tmp_path: Path) -> None:
    assert tomllib.loads(starter_config(name=None, join=())) == {
        "node": {},
        "net": {},
        "compute": {},
        "train": {},
        "place": {},
        "api": {},
        "mqtt": {},
        "log": {},
    }
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line else line
        for line in starter_config(name="n", join=[ADDRESS]).splitlines()
    )
    shown = tomllib.loads(uncommented)
    for section, key in (("train", "data"), ("net", "up")):
        shown[section].pop(key)  # an example: there is no default
    defaults = NodeConfig().model_dump(by_alias=True)
    shown["node"].pop("name")
    assert shown["net"].pop("join") == [ADDRESS]
    for section, settings in shown.items():
        for key, value in settings.items():
            assert defaults[section][key] == value, f"{section}.{key}"


def test_founding_tells_what_becomes_public_and_which_mesh_was_made(tmp_path: Path) -> None:
    data = tmp_path / "task.npz"
    data.write_bytes(b"PK")
    line = ("init", "--mesh", "digits", "--data", data, "--trunk", "efficientnet-b4", "--pixels", 64)
    ended = python(FOUNDING, "--home", tmp_path / "home", *line)
    assert ended.code == 0, ended.err
    assert "public" in ended.err
    assert "cd" * 32 in ended.out
    assert (tmp_path / "home" / "asked").read_text() == f"digits {data} efficientnet-b4 64 None {{}} None"
    as_json = python(FOUNDING, "--home", tmp_path / "home", "--json", *line)
    assert as_json.document["mesh"] == {"id": "cd" * 32, "name": "digits"}


def test_the_founder_chooses_the_form_of_experts(tmp_path: Path) -> None:
    data = tmp_path / "task.npz"
    data.write_bytes(b"PK")
    home = tmp_path / "home"
    line = ("init", "--mesh", "digits", "--data", data, "--expert", "conv")
    settings = ("--expert-set", "filters=3", "--expert-set", "input_scale=1.0", "--expert-set", "word=gelu")
    ended = python(FOUNDING, "--home", home, *line, *settings, "--expert-set", "biased=true")
    assert ended.code == 0, ended.err
    told = {"filters": 3, "input_scale": 1.0, "word": "gelu", "biased": True}
    assert (home / "asked").read_text().endswith(f"conv {told} None")
    for wrong in ("filters", "filters=", "=3"):
        assert python(FOUNDING, "--home", home, *line, "--expert-set", wrong).code == 2


def test_a_mesh_of_a_form_that_there_is_not_is_not_founded(tmp_path: Path) -> None:
    data, home = tmp_path / "task.npz", tmp_path / "home"
    save_task(data, digits("0", "1").select(range(40)))
    line = ("--home", home, "--json", "init", "--mesh", "digits", "--data", data, "--expert")
    refused = meshnode(*line, "rnn")
    assert (refused.code, refused.document["error"]["code"]) == (7, "refused")
    assert "known kinds: adapter, conv, deep, linear, mlp" in refused.document["error"]["message"]
    assert meshnode(*line, "mlp", "--expert-set", "depth=3").code == 7
    made = meshnode(*line, "conv", "--expert-set", "filters=3")
    assert made.code == 0, made.err
    with State(Home(home)) as state:
        mesh = load_mesh(state)
    assert mesh is not None
    assert (mesh.spec.expert.kind, mesh.spec.expert.config["filters"]) == ("conv", 3)
    assert mesh.architecture(mesh.spec.expert, 2).build("x")(torch.zeros(1, mesh.spec.feature_dim)).shape == (1, 2)


def test_the_founder_bounds_the_experts_or_names_their_form_but_not_both(tmp_path: Path) -> None:
    data, home = tmp_path / "task.npz", tmp_path / "home"
    data.write_bytes(b"PK")
    line = ("--home", home, "init", "--mesh", "digits", "--data", data)
    assert python(FOUNDING, *line, "--expert-budget", "9000").code == 0
    assert (home / "asked").read_text().endswith("None {} 9000")
    # As before there were budgets, settings alone are those of an mlp.
    assert python(FOUNDING, *line, "--expert-set", "hidden=16").code == 0
    assert (home / "asked").read_text().endswith("mlp {'hidden': 16} None")
    for form in (("--expert", "mlp"), ("--expert-set", "hidden=16")):
        refused = python(FOUNDING, *line, "--expert-budget", "9000", *form)
        assert refused.code == 2
        assert "--expert-budget chooses the form" in refused.err


def test_a_mesh_needs_data_that_is_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for line in (
        ("--mesh", "digits"),
        ("--data", "task.npz"),
        ("--expert", "conv"),
        ("--expert-set", "hidden=16"),
        ("--expert-budget", "9000"),
        ("--mesh", "m", "--data", "d", "--trunk", "resnet"),
    ):
        assert meshnode("--home", home, "init", *line).code == 2
    absent = meshnode("--home", home, "--json", "init", "--mesh", "digits", "--data", tmp_path / "none.npz")
    assert (absent.code, absent.document["error"]["code"]) == (11, "resource_absent")
    assert not home.exists()


def test_id_makes_no_identity(tmp_path: Path) -> None:
    ended = meshnode("--home", tmp_path, "--json", "id")
    assert ended.code == 11
    assert "meshnode init" in ended.document["error"]["hint"]
    assert list(tmp_path.iterdir()) == []


def test_an_identity_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    home = Home(tmp_path)
    meshnode("--home", home.path, "init")
    home.identity_key.chmod(0o644)
    for command in ("id", "init"):
        ended = meshnode("--home", home.path, "--json", command)
        assert (ended.code, ended.document["error"]["code"]) == (12, "identity_unusable")


def test_a_disk_that_refuses_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("where a folder should be")
    ended = meshnode("--home", tmp_path, "init")
    assert (ended.code, ended.out) == (1, "")
    assert str(tmp_path / "state") in ended.err
    assert "Traceback" not in ended.err
