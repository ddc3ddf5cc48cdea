"""``run`` and ``demo`` hand over exactly what they were told, and end as what they started ends."""

import json
from pathlib import Path

import pytest
from cli_process import Ended, meshnode, python

from meshnode.home import Home

ADDRESSES = [
    "/ip4/192.0.2.1/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
    "/ip4/192.0.2.2/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
]
# Runs the command with the daemon and the demo replaced by ones that print what they were given.
PROGRAM = """
import json, sys, types
from meshnode.cli import main
node = types.ModuleType("meshnode.node")
def run_node(home, settings, *, as_json):
    config = settings.config.model_dump(mode="json", by_alias=True)
    print(json.dumps({"home": str(home.path), "as_json": as_json, **config}))
    return 7
node.run_node = run_node
demo = types.ModuleType("meshnode.demo")
def run_demo(**given):
    print(json.dumps({name: str(value) for name, value in given.items()}))
    return 10
demo.run_demo = run_demo
sys.modules |= {"meshnode.node": node, "meshnode.demo": demo}
main()
"""


def _run(home: Path, *options: object, env: dict[str, str] | None = None) -> Ended:
    return python(PROGRAM, "--home", home, "run", *options, env=env)


def test_every_option_overrides_its_setting(tmp_path: Path) -> None:
    options = "--port 4001 --listen 0.0.0.0 --name owl --device cuda:1 --require-gpu --no-train --no-serve -v"
    joins = [word for address in ADDRESSES for word in ("--join", address)]
    ended = _run(tmp_path, *options.split(), *joins, "--api", "127.0.0.1:8000", "--data", tmp_path / "tasks")
    assert ended.code == 7, ended.err
    config = ended.document
    assert config["home"] == str(tmp_path)
    assert (config["net"]["port"], config["net"]["listen"], config["node"]["name"]) == (
        4001,
        "0.0.0.0",
        "owl",
    )
    assert config["net"]["join"] == ADDRESSES
    assert (config["compute"]["device"], config["compute"]["require_gpu"]) == ("cuda:1", True)
    assert (config["train"]["enabled"], config["serve"]["enabled"]) == (False, False)
    assert config["train"]["data"] == str(tmp_path / "tasks")
    assert (config["api"]["listen"], config["log"]["level"]) == ("127.0.0.1:8000", "debug")


def test_options_left_out_leave_the_file_and_the_environment_their_word(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.config_toml.write_text('[net]\nport = 4002\n[train]\nenabled = false\n[log]\nlevel = "error"\n')
    config = _run(tmp_path, env={"MESHNODE_NODE__NAME": "from-env", "MESHNODE_NET__LISTEN": "0.0.0.0"}).document
    assert (config["net"]["port"], config["net"]["listen"], config["node"]["name"]) == (
        4002,
        "0.0.0.0",
        "from-env",
    )
    assert (config["train"]["enabled"], config["serve"]["enabled"]) == (False, True)
    assert config["log"]["level"] == "error"
    assert _run(tmp_path, "--port", 4003, env={"MESHNODE_NET__PORT": "4004"}).document["net"]["port"] == 4003


def test_relative_data_is_of_the_folder_where_the_command_is_given(tmp_path: Path) -> None:
    assert _run(tmp_path, "--data", "tasks").document["train"]["data"] == str(Path.cwd() / "tasks")


def test_the_first_run_leaves_settings_to_edit_and_later_ones_leave_them_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    _run(home.path, "--name", "only-this-run")
    assert "only-this-run" not in home.config_toml.read_text()
    home.config_toml.write_text("# mine\n")
    _run(home.path)
    assert home.config_toml.read_text() == "# mine\n"


@pytest.mark.parametrize(
    "options",
    [
        ("--api", "8000"),
        ("--device", "tpu"),
        ("--listen", "everywhere"),
        ("--require-gpu", "--device", "cpu"),
        ("--join", "x"),
    ],
    ids=" ".join,
)
def test_unusable_settings_end_the_run_before_it_starts(tmp_path: Path, options: tuple[str, ...]) -> None:
    ended = _run(tmp_path / "home", "--json", *options)
    assert (ended.code, ended.document["error"]["code"]) == (3, "config_invalid")
    assert not (tmp_path / "home").exists()


def test_an_unknown_setting_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    Home(tmp_path).config_toml.write_text("[net]\nprot = 1\n")
    ended = _run(tmp_path)
    assert ended.code == 3
    assert "net.prot" in ended.err
    assert "net.port" in ended.err


def test_demo_passes_its_options_on(tmp_path: Path) -> None:
    ended = python(PROGRAM, "demo", "--dataset", "fashion-mnist", "--out", tmp_path, "--seed", 3, "--keep")
    assert ended.code == 10
    given = json.loads(ended.out)
    assert {name: given[name] for name in ("dataset", "out", "seed", "keep")} == {
        "dataset": "fashion-mnist",
        "out": str(tmp_path),
        "seed": "3",
        "keep": "True",
    }
    assert meshnode("demo", "--dataset", "mnist").code == 2
