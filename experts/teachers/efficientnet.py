"""The teacher ``package:efficientnet-lite0``: all 16 blocks and the head, with the weights of a package.

The package has no names of the 1,000 classes: they are ``imagenet-0000`` to ``imagenet-0999``, in the order of
ILSVRC 2012's synset identifiers, unless a classes file names them in that order.
"""

from pathlib import Path

from experts.errors import UnknownTeacher
from experts.networks.efficientnet_lite0 import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    NUM_CLASSES,
    pretrained_tensors,
)
from experts.teachers.class_names import read_classes
from experts.teachers.kinds import EFFICIENTNET_LITE0, build_network
from experts.teachers.network import InputForm, NetworkTeacher
from experts.teachers.weights import fit_weights

__all__ = ["load_package_teacher"]

_PIXELS = 224
"""What the network was trained at (github.com/tensorflow/tpu, models/official/efficientnet/lite)."""
_MIN_PIXELS = 32
"""The network halves its input five times."""


def load_package_teacher(subject: str, *, name: str, classes: Path | None = None) -> NetworkTeacher:
    """The teacher whose weights come as a package.

    Args:
        subject: ``efficientnet-lite0``, or ``efficientnet-lite0@P`` for images of P pixels, 32 to 4096: the same
            weights on other sizes cost less and know less.
        name: What the user calls it by.
        classes: A file of the 1,000 names; None for their numbers.
    Raises:
        UnknownTeacher: If there is no such package's teacher.
        PackageMissing: If the optional package with the weights is not installed.
        CorruptWeights: If the package's file is not the one this was made with.
        MalformedTeacher: If the classes file is not of 1,000 names.
    """
    network_name, _, size = subject.partition("@")
    if network_name != EFFICIENTNET_LITE0:
        raise UnknownTeacher(name, reason=f"the one teacher of a package is package:{EFFICIENTNET_LITE0}")
    form = InputForm(channels=3, pixels=_pixels(name, size), mean=IMAGENET_MEAN, deviation=IMAGENET_DEVIATION)
    if classes is None:
        names = tuple(f"imagenet-{column:04}" for column in range(NUM_CLASSES))
    else:
        names = read_classes(classes, num_classes=NUM_CLASSES)
    tensors = pretrained_tensors(head=True)
    network = build_network(EFFICIENTNET_LITE0, {}, form, NUM_CLASSES)
    fit_weights(network, tensors, source=name)
    return NetworkTeacher(network, name=name, architecture=EFFICIENTNET_LITE0, classes=names, form=form)


def _pixels(name: str, size: str) -> int:
    if not size:
        return _PIXELS
    if not (size.isascii() and size.isdigit() and len(size) <= 4 and int(size) >= _MIN_PIXELS):
        raise UnknownTeacher(name, reason=f"'@' is followed by the pixels of the images, {_MIN_PIXELS} or more")
    return int(size)
