"""Teachers by name: where a network and its weights come from, in one line.

    file:X.safetensors              a file that declares its network (`experts.teachers.file.save_teacher`)
    package:efficientnet-lite0[@P]  a package with weights, for images of P pixels
    timm:NAME[@X.safetensors]       timm's network with its published weights, or the user's
    torchvision:NAME[@WEIGHTS]      torchvision's, with published weights or X.safetensors
    hf:FOLDER or hf:OWNER/NAME      transformers' classifiers of images

Nothing is fetched unless ``download`` allows it, and no pickle of the user's is ever read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from experts.errors import UnknownTeacher
from experts.teachers.efficientnet import load_package_teacher
from experts.teachers.file import load_file_teacher
from experts.teachers.network import NetworkTeacher
from experts.teachers.timm_models import load_timm_teacher
from experts.teachers.torchvision_models import load_torchvision_teacher
from experts.teachers.transformers_models import load_transformers_teacher
from experts.teachers.weights import path_given

__all__ = ["SOURCES", "load_teacher"]

_PUBLISHED: Mapping[str, Callable[..., NetworkTeacher]] = {
    "hf": load_transformers_teacher,
    "timm": load_timm_teacher,
    "torchvision": load_torchvision_teacher,
}

SOURCES: tuple[str, ...] = ("file", "hf", "package", "timm", "torchvision")
"""What stands before the colon."""


def load_teacher(name: str, *, classes: Path | None = None, download: bool = False) -> NetworkTeacher:
    """The teacher of this name, its weights loaded, checked and frozen.

    Args:
        name: As above.
        classes: A file of names, one a line, line i for the network's column i; None for the names the source
            declares.
        download: Whether a library may fetch its published weights where this machine has none.
    Raises:
        UnknownTeacher: If nothing goes by this name here.
        PackageMissing: If its library is not installed: the extra ``teachers`` has them all.
        PickleRefused: If the weights are a pickle.
        MalformedTeacher: If classes, form or what a file declares are not what they have to be.
        CorruptWeights: If the weights are not those of the network.
    """
    source, colon, subject = name.partition(":")
    if not colon or not subject or source not in SOURCES:
        raise UnknownTeacher(name, reason=f"a name is SOURCE:WHAT with a source among {', '.join(SOURCES)}")
    if source == "file":
        return load_file_teacher(path_given(subject), name=name, classes=classes)
    if source == "package":
        return load_package_teacher(subject, name=name, classes=classes)
    return _PUBLISHED[source](subject, name=name, classes=classes, download=download)
