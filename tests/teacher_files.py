"""Small teachers in files, and pickles that would leave a mark if anything unpickled them."""

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from experts.teachers.cnn import untrained_cnn
from experts.teachers.network import InputForm, NetworkTeacher

FORM = InputForm(channels=1, pixels=8, mean=(0.5,), deviation=(0.25,))
CLASSES = ("bee", "ant", "cat")
DECLARED = {
    "architecture": "cnn",
    "classes": list(CLASSES),
    "form": {"channels": 1, "pixels": 8, "mean": [0.5], "deviation": [0.25]},
}


def small_teacher(seed: int = 0, *, form: InputForm = FORM) -> NetworkTeacher:
    """The reference CNN, its columns not in sorted order."""
    generator = torch.Generator().manual_seed(seed)
    network = untrained_cnn(CLASSES, channels=form.channels, pixels=form.pixels, generator=generator)
    return NetworkTeacher(network, name="small", architecture="cnn", classes=CLASSES, form=form)


def grey_images(number: int) -> torch.Tensor:
    return torch.rand(number, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def write_plain(path: Path, tensors: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Weights as another program writes them: nothing declared in the header."""
    save_file(dict(small_teacher().network.state_dict() if tensors is None else tensors), path)
    return path


def write_declared(path: Path, declared: object, tensors: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Weights with any declaration in the header."""
    given = dict(small_teacher().network.state_dict() if tensors is None else tensors)
    save_file(given, path, metadata={"modulemesh": json.dumps(declared)})
    return path


class _Canary:
    """Pickled, it is an order to create a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def pickled(form: str, canary: Path) -> bytes:
    """Bytes that create ``canary`` when they are unpickled, in one of the forms that weights come in."""
    if form.startswith("protocol-"):
        return pickle.dumps(_Canary(canary), protocol=int(form.removeprefix("protocol-")))
    buffer = io.BytesIO()
    if form == "torch":
        torch.save({"weight": _Canary(canary)}, buffer)
    elif form == "torch-legacy":
        torch.save({"weight": _Canary(canary)}, buffer, _use_new_zipfile_serialization=False)
    elif form == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(_Canary(canary)))
    else:
        assert form == "tar"
        data = pickle.dumps(_Canary(canary))
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member = tarfile.TarInfo("pickle")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


PICKLE_FORMS = (*(f"protocol-{number}" for number in range(6)), "torch", "torch-legacy", "zip", "tar")
