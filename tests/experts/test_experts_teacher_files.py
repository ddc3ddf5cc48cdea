"""Teachers in files: what is saved is what is loaded, and what does not fit is refused in words."""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from teacher_files import CLASSES, DECLARED, FORM, grey_images, small_teacher, write_declared, write_plain
from torch import nn

from experts.errors import CorruptWeights, ExpertsError, MalformedTeacher, UnknownTeacher
from experts.generators import torch_generator
from experts.networks.efficientnet_lite0 import HEAD_CHANNELS, build_layers
from experts.teachers.cnn import untrained_cnn
from experts.teachers.file import save_teacher
from experts.teachers.kinds import ENTRY_POINT_GROUP, build_network
from experts.teachers.limits import no_larger_than
from experts.teachers.named import load_teacher
from experts.teachers.network import InputForm, NetworkTeacher

FORM_JSON = {"channels": 1, "pixels": 8, "mean": [0.5], "deviation": [0.25]}

DOTS = """
from torch import nn

from experts.errors import MalformedTeacher


def build(config, form, num_classes):
    if config.keys() != {"bias"}:
        raise MalformedTeacher("dots", reason="bias")
    return nn.Sequential(nn.Flatten(), nn.Linear(form.channels * form.pixels**2, num_classes, bias=config["bias"]))


def nonsense(config, form, num_classes):
    return nn.Linear(-1, 1 // config["zero"])


NOTHING = None
"""


def load(path: Path, classes: Path | None = None) -> NetworkTeacher:
    return load_teacher(f"file:{path}", classes=classes)


def test_a_saved_teacher_is_loaded_as_it_was(tmp_path: Path) -> None:
    saved = small_teacher()
    save_teacher(saved, tmp_path / "t.safetensors")
    loaded = load(tmp_path / "t.safetensors")
    assert loaded.name == f"file:{tmp_path / 't.safetensors'}"
    assert loaded.classes == ("ant", "bee", "cat")
    assert loaded.form == FORM
    assert loaded.digest == saved.digest
    assert torch.equal(loaded.logits(grey_images(3)), saved.logits(grey_images(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_saved_file_has_one_entry_in_its_header_for_people_to_read(tmp_path: Path) -> None:
    save_teacher(small_teacher(), tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["modulemesh"]
    assert json.loads(metadata["modulemesh"]) == {**DECLARED, "config": {}}


def test_saving_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    subject = small_teacher()
    next(iter(subject.network.parameters())).fill_(torch.nan)
    with pytest.raises(CorruptWeights, match="finite"):
        save_teacher(subject, tmp_path / "t.safetensors")
    with pytest.raises(MalformedTeacher, match=r"ends in \.safetensors"):
        save_teacher(small_teacher(), tmp_path / "t.bin")
    assert list(tmp_path.iterdir()) == []


def test_what_a_node_trained_is_a_teacher_file_too(tmp_path: Path) -> None:
    network = untrained_cnn("ba", channels=3, pixels=8, generator=torch_generator(0, "teacher"))
    path = tmp_path / "t.safetensors"
    path.write_bytes(network.to_bytes())
    images_BCHW = torch.rand(2, 3, 8, 8)
    loaded = load(path)
    assert loaded.classes == ("a", "b")
    assert torch.equal(loaded.logits(images_BCHW), network.logits(images_BCHW))


def test_efficientnet_lite0_of_any_number_of_classes_can_be_saved(tmp_path: Path) -> None:
    layers = build_layers(head=True)
    layers[-1] = nn.Linear(HEAD_CHANNELS, 2)
    form = InputForm(channels=3, pixels=32, mean=(0.5,) * 3, deviation=(0.5,) * 3)
    saved = NetworkTeacher(layers, name="e", architecture="efficientnet-lite0", classes=("b", "a"), form=form)
    save_teacher(saved, tmp_path / "t.safetensors")
    assert load(tmp_path / "t.safetensors").digest == saved.digest


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_weights_of_another_program_are_declared_in_a_file_beside_them(tmp_path: Path, ending: str) -> None:
    path = write_plain(tmp_path / "t.safetensors")
    if ending == "json":
        (tmp_path / "t.json").write_text(json.dumps(DECLARED))
    else:
        (tmp_path / "t.toml").write_text(
            'architecture = "cnn"\nclasses = ["bee", "ant", "cat"]\n'
            "form = {channels = 1, pixels = 8, mean = [0.5], deviation = [0.25]}\n"
        )
    assert load(path).digest == small_teacher().digest


def test_a_classes_file_takes_the_place_of_the_names_declared(tmp_path: Path) -> None:
    save_teacher(small_teacher(), tmp_path / "t.safetensors")
    (tmp_path / "names").write_text("yak\nfox \nowl\n\n")
    renamed = load(tmp_path / "t.safetensors", tmp_path / "names")
    plain_BC = small_teacher().logits(grey_images(2))
    assert renamed.classes == ("fox", "owl", "yak")
    # fox was ant, owl was cat, yak was bee.
    assert torch.equal(renamed.logits(grey_images(2)), plain_BC[:, [0, 2, 1]])


def test_names_may_come_from_a_classes_file_alone(tmp_path: Path) -> None:
    path = write_declared(tmp_path / "t.safetensors", {**DECLARED, "classes": None})
    (tmp_path / "names").write_text("\n".join(CLASSES))
    assert load(path, tmp_path / "names").digest == small_teacher().digest
    with pytest.raises(MalformedTeacher, match="give a classes file"):
        load(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a\n\nb", "line 2 is empty"), ("a\nb\na", "occur twice: a"), ("", "is empty"), (b"\xff\xfe", "not a readable")],
)
def test_a_classes_file_that_does_not_name_columns_is_refused(tmp_path: Path, text: str | bytes, reason: str) -> None:
    save_teacher(small_teacher(), tmp_path / "t.safetensors")
    (tmp_path / "names").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MalformedTeacher, match=reason):
        load(tmp_path / "t.safetensors", tmp_path / "names")


def test_a_classes_file_of_another_length_does_not_fit_the_weights(tmp_path: Path) -> None:
    save_teacher(small_teacher(), tmp_path / "t.safetensors")
    (tmp_path / "names").write_text("a\nb\n")
    with pytest.raises(MalformedTeacher, match="2 names for 3 classes"):
        load(tmp_path / "t.safetensors", tmp_path / "names")


@pytest.mark.parametrize(
    ("declared", "error", "reason"),
    [
        ([], MalformedTeacher, "not an object"),
        ({**DECLARED, "extra": 1}, MalformedTeacher, "unknown entries extra"),
        ({**DECLARED, "architecture": 3}, MalformedTeacher, "'architecture'"),
        ({**DECLARED, "architecture": "unheard-of"}, UnknownTeacher, "known: cnn"),
        ({**DECLARED, "config": []}, MalformedTeacher, "'config'"),
        ({**DECLARED, "config": {"depth": 3}}, MalformedTeacher, "depth"),
        ({**DECLARED, "architecture": "efficientnet-lite0"}, MalformedTeacher, "3 channels"),
        ({**DECLARED, "classes": []}, MalformedTeacher, "'classes'"),
        ({**DECLARED, "classes": "abc"}, MalformedTeacher, "'classes'"),
        ({**DECLARED, "classes": ["a", "b", 3]}, MalformedTeacher, "'classes'"),
        ({**DECLARED, "classes": ["a", "b", "a"]}, MalformedTeacher, "occur twice: a"),
        ({**DECLARED, "classes": ["a", "b"]}, CorruptWeights, "shape"),
        ({**DECLARED, "form": None}, MalformedTeacher, "'form'"),
        ({**DECLARED, "form": {"channels": 1, "pixels": 8}}, MalformedTeacher, "'form'"),
        ({**DECLARED, "form": {**FORM_JSON, "pixels": 0}}, MalformedTeacher, "pixels"),
        ({**DECLARED, "form": {**FORM_JSON, "deviation": [0]}}, MalformedTeacher, "deviation"),
        ({**DECLARED, "form": {**FORM_JSON, "channels": 3}}, MalformedTeacher, "mean"),
        ({"classes": ["a"], "channels": "x", "pixels": 8}, MalformedTeacher, "channels"),
    ],
)
def test_a_declaration_that_is_not_one_is_refused(
    tmp_path: Path, declared: object, error: type[ExpertsError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        load(write_declared(tmp_path / "t.safetensors", declared))


def test_a_network_is_declared_once(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "t.safetensors")
    with pytest.raises(MalformedTeacher, match=r"nor in t\.json or t\.toml"):
        load(path)
    (tmp_path / "t.json").write_text(json.dumps(DECLARED))
    (tmp_path / "t.toml").write_text('architecture = "cnn"')
    with pytest.raises(MalformedTeacher, match=r"t\.json and in .*t\.toml"):
        load(path)
    (tmp_path / "t.toml").unlink()
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(MalformedTeacher, match="unreadable"):
        load(path)


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = dict(small_teacher().network.state_dict())
    tensors[name] = change(tensors[name]).contiguous()
    return tensors


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "missing tensors"),
        ({**small_teacher().network.state_dict(), "more": torch.zeros(1)}, "foreign tensors"),
        (changed("layers.0.weight", lambda tensor: tensor[:, :, 1:]), "layers.0.weight has shape"),
        (changed("layers.0.bias", lambda tensor: tensor.int()), "layers.0.bias is torch.int32"),
        (changed("layers.0.bias", lambda tensor: tensor * torch.inf), "not finite"),
    ],
    ids=["missing", "foreign", "shape", "type", "infinite"],
)
def test_weights_that_are_not_the_networks_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], reason: str
) -> None:
    with pytest.raises(CorruptWeights, match=reason):
        load(write_declared(tmp_path / "t.safetensors", DECLARED, tensors))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"mean": [10**400]}, "within"),
        ({"mean": [-1e7]}, "within"),
        ({"deviation": [1e-46]}, "1e-06 or more"),
        ({"channels": 1.0}, "channels"),
        ({"pixels": 10**30}, "pixels"),
    ],
    ids=["beyond-float", "mean", "deviation", "channels", "pixels"],
)
def test_a_form_that_no_image_survives_is_refused(tmp_path: Path, form: dict[str, object], reason: str) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(MalformedTeacher, match=reason):
        load(write_declared(path, DECLARED | {"form": FORM_JSON | form}))


def test_a_nodes_own_file_with_a_broken_form_is_refused(tmp_path: Path) -> None:
    declared = {"classes": list(CLASSES), "channels": 1.0, "pixels": 8}
    with pytest.raises(MalformedTeacher, match="channels"):
        load(write_declared(tmp_path / "t.safetensors", declared))


def test_weights_that_the_networks_floats_cannot_hold_are_refused(tmp_path: Path) -> None:
    large = changed("layers.0.weight", lambda tensor: tensor.double() + 1e300)
    with pytest.raises(CorruptWeights, match="not finite"):
        load(write_declared(tmp_path / "t.safetensors", DECLARED, large))


def test_floats_of_eight_bits_become_the_networks(tmp_path: Path) -> None:
    eighths = changed("layers.0.weight", lambda tensor: tensor.to(torch.float8_e4m3fn))
    loaded = load(write_declared(tmp_path / "t.safetensors", DECLARED, eighths))
    weight = loaded.network.state_dict()["layers.0.weight"]
    assert torch.equal(weight, eighths["layers.0.weight"].float())


def test_a_file_that_declares_more_than_it_could_hold_is_refused_unbuilt(tmp_path: Path) -> None:
    """20,000 classes of 1,280 weights each would take 102 MB, in a file of 2 MB."""
    classes = [f"{column:05}" for column in range(20_000)]
    form = {"channels": 3, "pixels": 32, "mean": [0.0] * 3, "deviation": [1.0] * 3}
    declared = {"architecture": "efficientnet-lite0", "classes": classes, "form": form}
    with pytest.raises(MalformedTeacher, match="a larger network than it has weights for"):
        load(write_declared(tmp_path / "t.safetensors", declared, {"a": torch.zeros(1)}))


def test_what_another_thread_builds_meanwhile_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"-")
    with ThreadPoolExecutor(1) as other, no_larger_than(tmp_path / "small"):
        assert other.submit(nn.Linear, 4_000, 4_000, device="meta").result().in_features == 4_000
        with pytest.raises(MalformedTeacher):
            nn.Linear(4_000, 4_000, device="meta")
    nn.Linear(4_000, 4_000, device="meta")


def test_halves_become_the_floats_of_the_network(tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in small_teacher().network.state_dict().items()}
    loaded = load(write_declared(tmp_path / "t.safetensors", DECLARED, halves))
    assert loaded.logits(grey_images(1)).dtype == torch.float32
    assert torch.allclose(loaded.logits(grey_images(3)), small_teacher().logits(grey_images(3)), atol=0.05)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x10\0\0\0\0\0\0\0{", b"\xff" * 40, b"hello, world" * 30])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.safetensors").write_bytes(data)
    with pytest.raises(CorruptWeights, match="not a safetensors file"):
        load(tmp_path / "t.safetensors")


def test_a_file_cut_short_or_not_there_is_refused(tmp_path: Path) -> None:
    path, folder = tmp_path / "t.safetensors", tmp_path / "folder.safetensors"
    folder.mkdir()
    for name in (path, folder, "~nobody-here/t.safetensors"):
        with pytest.raises(UnknownTeacher, match="there is no file /"):
            load_teacher(f"file:{name}")
    save_teacher(small_teacher(), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptWeights, match="not a safetensors file"):
        load(path)


def test_building_a_network_draws_nothing_from_the_global_stream() -> None:
    before = torch.get_rng_state()
    build_network("cnn", {}, FORM, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that declares kinds of teacher networks, installed for the length of a test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mesh_dots.py").write_text(DOTS)
    metadata = tmp_path / "mesh_dots-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mesh-dots\nVersion: 1.0\n")
    declared = [
        "dots = mesh_dots:build",
        "gone = mesh_dots:gone",
        "nonsense = mesh_dots:nonsense",
        "nothing = mesh_dots:NOTHING",
        "cnn = mesh_dots:gone",
    ]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINT_GROUP}]", *declared, ""]))
    yield tmp_path
    sys.modules.pop("mesh_dots", None)


def test_an_installed_package_brings_kinds_of_its_own(dots: Path) -> None:
    network = build_network("dots", {"bias": False}, FORM, 3)
    saved = NetworkTeacher(network, name="d", architecture="dots", classes=CLASSES, form=FORM, config={"bias": False})
    save_teacher(saved, dots / "t.safetensors")
    loaded = load(dots / "t.safetensors")
    assert loaded.digest == saved.digest
    assert torch.equal(loaded.logits(grey_images(2)), saved.logits(grey_images(2)))


def test_a_declared_kind_that_is_no_function_is_refused_and_no_built_in_one_is_replaced(dots: Path) -> None:
    with pytest.raises(UnknownTeacher, match="cannot be imported"):
        build_network("gone", {}, FORM, 3)
    with pytest.raises(UnknownTeacher, match="not a function"):
        build_network("nothing", {}, FORM, 3)
    with pytest.raises(MalformedTeacher, match="bias"):
        build_network("dots", {}, FORM, 3)
    with pytest.raises(MalformedTeacher, match="ZeroDivisionError"):
        build_network("nonsense", {"zero": 0}, FORM, 3)
    assert "mesh_dots" in sys.modules
    assert list(build_network("cnn", {}, FORM, 3).state_dict()) == list(small_teacher().network.state_dict())
