"""A whole teacher taken apart into experts of a mesh, on images that this machine has.

What the teacher ends with, its dense layers behind a frozen section, is translated to the features of the mesh's trunk.
Then, for each group of classes, its units are scored by what tells these classes apart, and mapped to those of an
expert. No step of training is taken. What comes of it are expert files (`meshnode.expert_files`).

Legend: N images, D features of the teacher's section, E features of the trunk, C class.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experts.checkpoint import weights_to_bytes
from experts.data.dataset import ImageDataset, class_columns
from experts.data.held_out import image_digest, is_held_out
from experts.data.npz import load_task
from experts.errors import MalformedDataset, NothingToLearnFrom, UnknownClasses
from experts.generators import torch_generator
from experts.preservation.monolith import answering, dense_tail, inputs_of, translated
from experts.preservation.report import TransferReport
from experts.preservation.transfer import Source, TransferConfig, transfer
from experts.teachers.capability import Capability
from experts.teachers.network import NetworkTeacher
from experts.trunk.base import features_of
from experts.trunk.images import prepare_images
from meshnode.expert_files import expert_to_file
from meshnode.forms import form_of
from meshnode.mesh import Mesh
from protocol.identifiers import ExpertUid, digest_of
from protocol.records import ExpertAdvert
from protocol.spec import ExpertForm

__all__ = ["MAX_IMAGES", "Looked", "Piece", "groups_in", "images_in", "look_at", "take_out"]

MAX_IMAGES = 20_000
"""Looked at in all: the teacher answers each, and features of so many are held."""

_BATCH = 32
"""Images that are prepared for the teacher at a time: at 224 pixels, in colour, each takes 600 kB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """An expert that was taken out of a teacher."""

    uid: ExpertUid
    classes: tuple[str, ...]
    data: bytes
    """The expert's file."""
    report: TransferReport
    teacher_accuracy: float
    """On held-out images of these classes, in [0, 1], asked for these classes alone."""
    accuracy: float
    """The expert's on the same."""
    num_held_out: int


def groups_in(folder: Path, classes: Collection[str]) -> list[tuple[str, ...]]:
    """For each task file, those of its classes that are among these: what a node would spawn one expert for.

    Raises:
        MalformedDataset: A file is none.
        NothingToLearnFrom: There is no file with such a class.
    """
    groups: dict[tuple[str, ...], None] = {}
    for path in sorted(folder.glob("*.npz")):
        if names := tuple(sorted(set(load_task(path).classes) & set(classes))):
            groups.setdefault(names)
    if not groups:
        raise NothingToLearnFrom(f"{folder}, without a task file of a class that the teacher knows,")
    return list(groups)


def images_in(folder: Path, classes: Collection[str]) -> ImageDataset:
    """The images of these classes in a folder's task files, `MAX_IMAGES` at most, of each file as many.

    Raises:
        MalformedDataset: A file is none, or two have images of different sizes.
        NothingToLearnFrom: There is no such image.
    """
    # Read twice, so that never more than one file is held beside what is kept of them.
    paths = [path for path in sorted(folder.glob("*.npz")) if set(classes) & set(load_task(path).classes)]
    if not paths:
        raise NothingToLearnFrom(f"{folder}, without a task file of the classes {', '.join(sorted(classes))},")
    kept = [_some_of(load_task(path), classes, MAX_IMAGES // len(paths)) for path in paths]
    if len(sizes := {task.images.shape[1:] for task in kept}) > 1:
        raise MalformedDataset(str(folder), reason=f"images of different sizes: {sorted(sizes)}")
    return ImageDataset(
        np.concatenate([task.images for task in kept]), tuple(label for task in kept for label in task.labels)
    )


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Looked:
    """A teacher, seen through the features of a mesh's trunk on some images."""

    source: Source
    """Its dense layers, for the mesh's names of its classes."""
    features_NE: Tensor
    labels_N: Tensor
    """int64, columns of the source."""
    logits_NC: Tensor
    """The teacher's own, of the same columns."""
    held_out_N: Tensor
    """bool: which images only judge."""


def look_at(mesh: Mesh, teacher: NetworkTeacher, of: Mapping[str, str], images: ImageDataset) -> Looked:
    """See a teacher through a mesh's trunk.

    Args:
        mesh: Whose trunk.
        teacher: Who is taken apart.
        of: For classes of the teacher's, the mesh's name.
        images: Labelled by the mesh's names, each of which `of` has.

    Raises:
        NothingCorresponds: The teacher does not end with dense layers.
        UnknownClasses: `of` names a class that the teacher does not have.
    """
    capability = Capability(teacher, of)

    def prepared(images: NDArray[np.uint8]) -> Tensor:
        return prepare_images(images, teacher.form.channels, teacher.form.pixels)

    tail = dense_tail(teacher.network, teacher.normalised(prepared(images.images[:2])))
    inputs, logits = [], []
    # Batch by batch: prepared to a teacher's size, all images would take a hundred times what they take as they are.
    for start in range(0, len(images), _BATCH):
        prepared_BCHW = prepared(images.images[start : start + _BATCH])
        inputs.append(inputs_of(teacher.network, tail.first, teacher.normalised(prepared_BCHW)))
        logits.append(capability.logits(prepared_BCHW))
    inputs_ND, logits_NC = torch.cat(inputs), torch.cat(logits)
    features_NE = features_of(mesh.trunk, images.images).cpu()
    held_out_N = torch.tensor([is_held_out(image_digest(image)) for image in images.images])
    seen_N = ~held_out_N
    if len(set(of.values())) == len(of):
        own = {ours: teacher.network_classes.index(theirs) for theirs, ours in of.items()}
        chain = tail.chain.with_outputs([own[name] for name in capability.classes])
    else:  # classes of the teacher's that are one to the mesh have a logit that is no row of its weights
        chain = answering(tail.chain, inputs_ND[seen_N], logits_NC[seen_N])
    return Looked(
        source=Source(translated(chain, inputs_ND[seen_N], features_NE[seen_N]), capability.classes),
        features_NE=features_NE,
        labels_N=class_columns(images.labels, capability.classes),
        logits_NC=logits_NC,
        held_out_N=held_out_N,
    )


def take_out(
    mesh: Mesh, looked: Looked, classes: tuple[str, ...], form: ExpertForm, config: TransferConfig, *, seed: int
) -> Piece:
    """The expert for some classes of a teacher's.

    Args:
        mesh: That it belongs to.
        looked: The teacher.
        classes: Sorted.
        form: Of the expert.
        config: How units are scored and mapped.
        seed: What the splitting of units is drawn from.

    Raises:
        NothingCorresponds: Units of this form do nothing that the teacher's do.
        UnknownClasses: The teacher was not looked at for one of the classes.
        NothingToLearnFrom: There is no image of a class to look at, or none of them all to judge by.
        UnknownArchitecture: The form does not fit the mesh.
    """
    architecture, uid = mesh.architecture(form, len(classes)), mesh.uid_of(classes, form)
    known = looked.source.classes
    if unknown := set(classes) - set(known):
        raise UnknownClasses(unknown, known=known)
    columns = torch.tensor([known.index(name) for name in classes])
    if absent := sorted(set(classes) - {known[column] for column in looked.labels_N[~looked.held_out_N].tolist()}):
        raise NothingToLearnFrom(f"an expert for {', '.join(classes)}, without an image of {', '.join(absent)},")
    judged_N = looked.held_out_N & torch.isin(looked.labels_N, columns)
    if not bool(judged_N.any()):
        raise NothingToLearnFrom(f"an expert for {', '.join(classes)}, without a held-out image of them,")
    module, report = transfer(
        looked.source,
        architecture,
        classes,
        looked.features_NE[~looked.held_out_N],
        looked.labels_N[~looked.held_out_N],
        config,
        seed=uid,
        generator=torch_generator(seed, f"dismantle/{uid}"),
    )
    weights = weights_to_bytes(module)
    digest = digest_of(weights)
    advert = ExpertAdvert(
        uid=uid, form=form_of(architecture), classes=classes, since=0.0, round=0, generation=1, weights=digest
    )
    wanted_N = torch.searchsorted(columns, looked.labels_N[judged_N])
    return Piece(
        uid=uid,
        classes=classes,
        data=expert_to_file(advert, mesh.mesh_id, digest, weights, None),
        report=report,
        teacher_accuracy=_accuracy(looked.logits_NC[judged_N][:, columns], wanted_N),
        accuracy=_accuracy(_logits(module, looked.features_NE[judged_N]), wanted_N),
        num_held_out=len(wanted_N),
    )


def _logits(module: nn.Module, features_NE: Tensor) -> Tensor:
    with torch.no_grad():
        logits_NC: Tensor = module(features_NE)
    return logits_NC


def _accuracy(logits_NC: Tensor, wanted_N: Tensor) -> float:
    return float((logits_NC.argmax(dim=1) == wanted_N).double().mean())


def _some_of(task: ImageDataset, classes: Collection[str], limit: int) -> ImageDataset:
    """Of the images of these classes at most so many, in an order that means nothing and is always the same."""
    own = task.of_classes(set(classes) & set(task.classes))
    return own.select(sorted(range(len(own)), key=lambda row: image_digest(own.images[row]))[:limit])
