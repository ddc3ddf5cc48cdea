"""Sections of networks of timm, torchvision and transformers: found by watching, whatever the modules are called."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experts.errors import SectionNotPortable
from experts.teachers.named import load_teacher
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.sections import list_sections, section
from experts.teachers.transformers_models import build
from experts.trunk.codec import trunk_to_bytes
from experts.trunk.section import trunk_of_section

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
pytest.importorskip("transformers")
pytestmark = pytest.mark.teachers

NAMES = ("wolf", "ant", "bee")
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
TRANSFORMERS = {"vit": VIT, "resnet": RESNET}


def teacher(name: str, folder: Path) -> NetworkTeacher:
    """A small one with random weights, of any of the three."""
    library, _, network_name = name.partition(":")
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    if library == "hf":
        form = InputForm(channels=3, pixels=32, mean=(0.5,) * 3, deviation=(0.5,) * 3)
        network = build(TRANSFORMERS[network_name], form, 3)
        made = NetworkTeacher(network, name=name, architecture="transformers", classes=NAMES, form=form)
    else:
        if library == "timm":
            network = timm.create_model(network_name, pretrained=False, num_classes=3)
        else:
            network = torchvision.models.get_model(network_name, weights=None, num_classes=3)
        save_file(network.state_dict(), folder / "own.safetensors")
        (folder / "names").write_text("\n".join(NAMES))
        made = load_teacher(f"{name}@{folder / 'own.safetensors'}", classes=folder / "names")
    torch.set_rng_state(generator_state)
    return made


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("timm:test_resnet", ["maxpool", "layer1", "layer4", "global_pool"], ["layer1.0.conv1", "layer1.0.bn2"]),
        ("timm:test_efficientnet", ["bn1", "blocks", "global_pool"], []),
        ("timm:test_convnext", ["stem", "stages.0", "stages"], ["stages.0.blocks.0.conv_dw"]),
        ("timm:test_vit", ["patch_embed", "blocks.0", "blocks.1", "norm"], ["blocks.0.norm1", "blocks.0.attn"]),
        ("torchvision:resnet18", ["maxpool", "layer1", "layer4", "avgpool"], ["layer1.0.conv1", "layer2.0.downsample"]),
        ("torchvision:squeezenet1_1", ["features.3", "features"], ["features.3.expand1x1"]),
        ("hf:vit", ["model.vit.layers.0", "model.vit.layers.1"], ["model.vit.layers.0.attention.o_proj"]),
        ("hf:resnet", ["model.resnet.embedder", "model.resnet.pooler"], []),
    ],
)
def test_blocks_are_valid_cuts_and_their_insides_are_not(
    name: str, valid: list[str], invalid: list[str], tmp_path: Path
) -> None:
    subject = teacher(name, tmp_path)
    listed = {each.cut: each for each in list_sections(subject)}
    assert {cut: listed[cut].valid for cut in (*valid, *invalid)} == dict.fromkeys(valid, True) | dict.fromkeys(
        invalid, False
    )
    assert not any(each.portable for each in listed.values())
    last = list(listed.values())[-1]
    assert last.valid
    # (3,), or (3, 1, 1) where the network flattens without a module.
    assert math.prod(last.output_shape) == 3
    assert last.num_parameters == sum(parameter.numel() for parameter in subject.network.parameters())
    sizes = [(each.num_parameters, each.flops) for each in listed.values()]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:resnet18", "hf:resnet"])
def test_a_section_gives_what_the_whole_gives_there_and_is_a_trunk_on_this_machine(name: str, tmp_path: Path) -> None:
    subject = teacher(name, tmp_path)
    cut = next(each.cut for each in list_sections(subject) if each.valid and len(each.output_shape) == 3)
    path = cut.partition("#")[0]
    caught: list[torch.Tensor] = []
    handle = subject.network.get_submodule(path).register_forward_hook(
        lambda _module, _inputs, output: caught.append(output.clone())
    )
    images_BCHW = torch.rand(2, 3, subject.form.pixels, subject.form.pixels, generator=torch.Generator().manual_seed(0))
    subject.logits(images_BCHW)
    handle.remove()
    part = section(subject, cut)
    assert torch.allclose(part(subject.normalised(images_BCHW)), caught[0], atol=1e-5)
    trunk = trunk_of_section(part, pool=2)
    assert trunk(images_BCHW).shape == (2, trunk.feature_dim)
    with pytest.raises(SectionNotPortable):
        trunk_to_bytes(trunk)
