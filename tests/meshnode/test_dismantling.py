"""A whole teacher taken apart into experts of a mesh, and replicas brought into one order: functions and commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_process import meshnode
from mesh_in_memory import MESH, digits, form, mesh_blobs
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from experts.checkpoint import flat_parameters, load_weights, weights_to_bytes
from experts.data.dataset import ImageDataset
from experts.data.npz import save_task
from experts.errors import MalformedDataset, NothingCorresponds, NothingToLearnFrom, UnknownClasses
from experts.preservation.transfer import TransferConfig
from experts.teachers.cnn import TeacherConfig, train_teacher
from experts.teachers.file import save_teacher
from experts.teachers.network import InputForm, NetworkTeacher
from experts.trunk.images import prepare_images
from meshnode import dismantling
from meshnode.aligning import aligned_file
from meshnode.dismantling import groups_in, images_in, look_at, take_out
from meshnode.errors import ExitCode, Refused
from meshnode.expert_files import FileExpert, expert_to_file, read_expert_file
from meshnode.home import Home
from meshnode.kept_experts import import_kept
from meshnode.mesh import MESH_SETTING
from meshnode.state.state import State
from protocol.identifiers import digest_of
from protocol.records import ExpertAdvert

CLASSES = ("0", "1", "2", "3")
NO_NORM = InputForm(channels=1, pixels=8, mean=(0.0,), deviation=(1.0,))


@pytest.fixture(scope="module")
def teacher() -> NetworkTeacher:
    """A CNN that knows four digits well."""
    train = digits().of_classes(CLASSES)
    network = train_teacher(
        prepare_images(train.images, 1, 8), train.labels, TeacherConfig(epochs=6), torch.Generator().manual_seed(0)
    )
    return NetworkTeacher(network, name="cnn", architecture="cnn", classes=CLASSES, form=NO_NORM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of digits."""
    path = tmp_path_factory.mktemp("tasks")
    save_task(path / "a.npz", digits().of_classes(("0", "1")))
    save_task(path / "b.npz", digits().of_classes(("2", "3")))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """One that belongs to the mesh, and on which nothing runs."""
    made = Home(tmp_path / "home")
    with State(made) as state:
        for data in mesh_blobs():
            state.blobs.put(data)
        state.set_setting(MESH_SETTING, MESH.mesh_id)
    return made


def own_names(names: tuple[str, ...] = CLASSES) -> dict[str, str]:
    return {name: name for name in names}


def test_experts_of_a_teacher_know_what_it_knows_without_a_step_of_training(
    teacher: NetworkTeacher, folder: Path
) -> None:
    looked = look_at(MESH, teacher, own_names(), images_in(folder, CLASSES))
    for classes in groups_in(folder, CLASSES):
        piece = take_out(MESH, looked, classes, form("mlp", hidden=8), TransferConfig(), seed=0)
        assert piece.teacher_accuracy > 0.95
        assert piece.accuracy > piece.teacher_accuracy - 0.05
        assert (piece.report.layers[0].old_units, piece.report.layers[0].new_units) == (128, 8)
        read = read_expert_file(piece.data, MESH)
        assert (read.advert.uid, read.advert.classes) == (MESH.uid_of(classes, form("mlp", hidden=8)), classes)
        assert read.origin == read.advert.weights == digest_of(read.weights)


def test_classes_of_a_teacher_that_the_mesh_counts_as_one_are_one(teacher: NetworkTeacher, folder: Path) -> None:
    both = images_in(folder, CLASSES)
    of = {"0": "low", "1": "low", "2": "high", "3": "high"}
    named = ImageDataset(both.images, tuple(of[label] for label in both.labels))
    looked = look_at(MESH, teacher, of, named)
    piece = take_out(MESH, looked, ("high", "low"), form("mlp", hidden=8), TransferConfig(), seed=0)
    assert piece.accuracy > piece.teacher_accuracy - 0.05 > 0.85


def test_held_out_images_only_judge(teacher: NetworkTeacher, folder: Path) -> None:
    images = images_in(folder, CLASSES)
    looked = look_at(MESH, teacher, own_names(), images)
    share = float(looked.held_out_N.double().mean())
    assert 0.1 < share < 0.3  # one in five, of 200 images
    kept = images.select((~looked.held_out_N).nonzero().flatten().numpy())
    again = look_at(MESH, teacher, own_names(), kept)
    assert not bool(again.held_out_N.any())
    ours = weights_of(take_out(MESH, looked, ("0", "1"), form("mlp"), TransferConfig(), seed=0).data)
    with pytest.raises(NothingToLearnFrom, match="held-out image"):
        take_out(MESH, again, ("0", "1"), form("mlp"), TransferConfig(), seed=0)
    # Whatever the judges are, the expert is the same.
    twice = [*range(len(images)), *looked.held_out_N.nonzero().flatten().tolist()]
    judges = look_at(MESH, teacher, own_names(), images.select(twice))
    theirs = weights_of(take_out(MESH, judges, ("0", "1"), form("mlp"), TransferConfig(), seed=0).data)
    assert torch.allclose(ours, theirs, atol=1e-5)


def module_of(read: FileExpert) -> nn.Module:
    module = read.architecture.build("")
    load_weights(module, read.weights)
    return module


def weights_of(data: bytes) -> torch.Tensor:
    return flat_parameters(module_of(read_expert_file(data, MESH)))


def test_what_cannot_be_taken_apart_is_refused_by_name(teacher: NetworkTeacher, folder: Path, tmp_path: Path) -> None:
    images = images_in(folder, CLASSES)
    conv = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    whole = NetworkTeacher(conv, name="conv", architecture="none", classes=CLASSES, form=NO_NORM)
    with pytest.raises(NothingCorresponds, match="ends with 0 dense layers"):
        look_at(MESH, whole, own_names(), images)
    with pytest.raises(UnknownClasses, match="dog"):
        look_at(MESH, teacher, own_names() | {"dog": "dog"}, images)
    with pytest.raises(NothingToLearnFrom, match="classes dog"):
        images_in(folder, ("dog",))
    save_task(tmp_path / "a.npz", digits().of_classes(("0",)))
    larger = digits().of_classes(("1",))
    save_task(tmp_path / "b.npz", ImageDataset(larger.images.repeat(2, axis=1).repeat(2, axis=2), larger.labels))
    with pytest.raises(MalformedDataset, match="different sizes"):
        images_in(tmp_path, ("0", "1"))


def test_a_group_has_to_be_of_classes_that_were_looked_at(
    teacher: NetworkTeacher, folder: Path, tmp_path: Path
) -> None:
    looked = look_at(MESH, teacher, own_names(), images_in(folder, ("0", "1")))
    with pytest.raises(UnknownClasses, match="dog"):
        take_out(MESH, looked, ("0", "dog"), form("mlp"), TransferConfig(), seed=0)
    with pytest.raises(NothingToLearnFrom, match="without an image of 2"):
        take_out(MESH, looked, ("0", "2"), form("mlp"), TransferConfig(), seed=0)
    with pytest.raises(NothingToLearnFrom, match="a class that the teacher knows"):
        groups_in(folder, ("dog",))


def test_images_are_prepared_for_the_teacher_a_few_at_a_time(
    teacher: NetworkTeacher, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []

    def watched(images: NDArray[np.uint8], channels: int, pixels: int) -> torch.Tensor:
        prepared.append(len(images))
        return prepare_images(images, channels, pixels)

    monkeypatch.setattr(dismantling, "prepare_images", watched)
    images = images_in(folder, CLASSES)
    looked = look_at(MESH, teacher, own_names(), images)
    assert max(prepared) < len(images) // 4
    assert torch.allclose(looked.logits_NC, teacher.logits(prepare_images(images.images, 1, 8)), atol=1e-4)


def test_of_more_images_than_are_looked_at_each_file_gives_its_share(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dismantling, "MAX_IMAGES", 30)
    counts = images_in(folder, CLASSES).class_counts
    assert counts["0"] + counts["1"] == counts["2"] + counts["3"] == 15


def test_the_command_writes_files_that_import_takes(
    teacher: NetworkTeacher, folder: Path, home: Home, tmp_path: Path
) -> None:
    save_teacher(teacher, tmp_path / "cnn.safetensors")
    line = ("teacher", "experts", f"file:{tmp_path / 'cnn.safetensors'}", "--data", folder, "--out", tmp_path / "out")
    made = meshnode("--home", home.path, "--json", *line).document
    assert made["schema"] == "meshnode.teacher-experts/1"
    assert [each["classes"] for each in made["experts"]] == [["0", "1"], ["2", "3"]]
    for each in made["experts"]:
        assert each["accuracy"] > each["teacher_accuracy"] - 0.05
        taken = meshnode("--home", home.path, "--json", "experts", "import", each["file"]).document
        assert taken["expert"]["uid"] == each["uid"]
    again = meshnode("--home", home.path, "--json", *line)
    assert (again.code, again.document["error"]["code"]) == (ExitCode.REFUSED, "refused")
    people = meshnode("--home", home.path, *line, "--force", "--group", "0,2", "--to", "mlp", "--set", "hidden=5")
    assert people.code == 0
    assert "128 -> 5" in people.out
    spaced = meshnode("--home", home.path, "--json", *line, "--force", "--group", "0, 2,0")
    assert [each["classes"] for each in spaced.document["experts"]] == [["0", "2"]]
    assert meshnode("--home", home.path, *line, "--group", " ,").code == ExitCode.USAGE
    strange = meshnode("--home", home.path, "--json", *line, "--group", "0,dog")
    assert (strange.code, strange.document["error"]["code"]) == (ExitCode.RESOURCE_ABSENT, "resource_absent")


def test_weights_alone_are_taken_apart_with_names_for_their_outputs(folder: Path, home: Home, tmp_path: Path) -> None:
    train = digits().of_classes(CLASSES)
    pixels, labels = prepare_images(train.images, 1, 8).flatten(1), torch.tensor([int(name) for name in train.labels])
    network = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 4))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4)
    for _ in range(300):
        loss = nn.functional.cross_entropy(network(pixels), labels)
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.sub_(parameter.grad * 0.5)
    save_file(network.state_dict(), tmp_path / "raw.safetensors")
    (tmp_path / "names").write_text("\n".join(CLASSES))
    line = ("teacher", "experts", f"weights:{tmp_path / 'raw.safetensors'}", "--data", folder, "--out", tmp_path)
    named = ("--classes", tmp_path / "names", "--activation", "tanh")
    made = meshnode("--home", home.path, "--json", *line, *named).document
    assert all(each["accuracy"] > 0.9 and each["teacher_accuracy"] > 0.9 for each in made["experts"])
    assert meshnode("--home", home.path, *line).code == ExitCode.USAGE
    (tmp_path / "names").write_text("a\nb\nc")
    wrong = meshnode("--home", home.path, "--json", *line, *named)
    assert wrong.code == ExitCode.RESOURCE_ABSENT
    assert "3 names for 4 classes" in wrong.document["error"]["message"]


def test_a_home_of_no_mesh_is_told_so(folder: Path, tmp_path: Path) -> None:
    line = ("teacher", "experts", "file:x.safetensors", "--data", folder, "--out", tmp_path)
    ended = meshnode("--home", tmp_path / "empty", "--json", *line)
    assert ended.code == ExitCode.REFUSED
    assert "belongs to no mesh" in ended.document["error"]["message"]


def replica(seed: int, *, classes: tuple[str, ...] = ("0", "1")) -> bytes:
    """A file of an expert that began with weights of its own."""
    own = form("mlp", hidden=6)
    architecture, uid = MESH.architecture(own, len(classes)), MESH.uid_of(classes, own)
    module = architecture.build(str(seed))
    weights = weights_to_bytes(module)
    advert = ExpertAdvert(
        uid=uid, form=own, classes=classes, since=0.0, round=0, generation=1, weights=digest_of(weights)
    )
    return expert_to_file(advert, MESH.mesh_id, digest_of(weights), weights, None)


def test_an_aligned_replica_computes_the_same_and_is_of_the_mesh_s_origin(folder: Path) -> None:
    ours, stranger = replica(1), replica(2)
    result = aligned_file(MESH, stranger, ours, folder)
    read, before, reference = (read_expert_file(data, MESH) for data in (result.data, stranger, ours))
    assert read.origin == reference.origin != before.origin
    assert result.correlations.keys() == {"hidden"}
    own, other = (module_of(each) for each in (read, before))
    features = torch.randn(20, MESH.spec.feature_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(own(features), other(features), atol=1e-5)
    with pytest.raises(Refused, match="two experts"):
        aligned_file(MESH, replica(1, classes=("2", "3")), ours, folder)


def test_what_was_refused_for_its_origin_is_taken_once_it_is_aligned(home: Home, folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        (tmp_path / f"{seed}.safetensors").write_bytes(replica(seed))
    import_kept(home, replica(1), replace=False)
    refused = meshnode("--home", home.path, "experts", "import", "--replace", tmp_path / "2.safetensors")
    assert refused.code == ExitCode.REFUSED
    assert "experts align" in refused.err
    line = ("experts", "align", tmp_path / "2.safetensors", "--to", tmp_path / "1.safetensors", "--data", folder)
    aligned = meshnode("--home", home.path, "--json", *line, "--out", tmp_path / "new.safetensors")
    assert aligned.document["schema"] == "meshnode.expert-align/1"
    taken = meshnode("--home", home.path, "experts", "import", "--replace", tmp_path / "new.safetensors")
    assert (taken.code, taken.err) == (0, "")
    assert meshnode("--home", home.path, *line, "--out", tmp_path / "new.safetensors").code == ExitCode.REFUSED
