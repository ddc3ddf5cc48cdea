"""The document with which a server of hivemind's kind describes an expert: written as hivemind does, read with care.

hivemind packs tuples and tensor descriptors as MessagePack extensions inside one another, and unpacks them by
recursion: a few kilobytes of nested extensions end a process that does. What strangers send is therefore read here
with a bound on bytes and depth, and only what is needed of it is believed.
"""

from typing import Annotated, Any, Final

import msgpack
import msgspec
import torch
from hivemind.utils import MSGPackSerializer
from hivemind.utils.tensor_descr import BatchTensorDescriptor

from meshnode.transport.moe.interface import ExpertInfo
from protocol.errors import FrameTooLarge, MalformedMessage
from protocol.limits import MAX_CLASSES_PER_EXPERT, MAX_TENSOR_DIMS
from protocol.wiretypes import ClassName, ExpertUidField

__all__ = ["MAX_INFO_BYTES", "pack_info", "unpack_info"]

MAX_INFO_BYTES: Final = 64 * 1024
"""A description with 256 class names of 64 characters takes a quarter of it."""

_MAX_DEPTH: Final = 5
"""Extensions inside one another: a schema is a tuple of a tuple of descriptors with a tuple for the size: four."""

_TUPLE: Final = 0x40
_DESCRIPTOR: Final = 0x51

_Size = Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class _Descriptor(msgspec.Struct, frozen=True):
    """A tensor with any number of rows, for which None stands in front."""

    size: Annotated[tuple[_Size | None, ...], msgspec.Meta(min_length=2, max_length=MAX_TENSOR_DIMS)]
    dtype: Annotated[str, msgspec.Meta(max_length=32)]


class _Document(msgspec.Struct, frozen=True):
    forward_schema: tuple[tuple[_Descriptor, ...], dict[str, Any]]
    """Of the arguments by place, and by name."""
    outputs_schema: _Descriptor | tuple[Any, ...]
    """A tuple if there are several."""
    expert: ExpertUidField | None = None
    classes: Annotated[tuple[ClassName, ...], msgspec.Meta(max_length=MAX_CLASSES_PER_EXPERT)] = ()


def pack_info(info: ExpertInfo) -> bytes:
    """The description of one of our experts: hivemind's three entries, and two that only those read who know them."""
    inputs, outputs = (BatchTensorDescriptor(*shape, dtype=torch.float32) for shape in (info.inputs, info.outputs))
    document = {
        "forward_schema": ((inputs,), {}),
        "outputs_schema": outputs,
        "keyword_names": (),
        "expert": info.expert,
        "classes": info.classes,
    }
    return bytes(MSGPackSerializer.dumps(document))


def unpack_info(data: bytes) -> ExpertInfo:
    """What a server tells of an expert.

    Raises:
        FrameTooLarge: Longer than `MAX_INFO_BYTES`; nothing was decoded.
        MalformedMessage: No such description, or of an expert with other inputs and outputs than one float32 tensor.
    """
    if len(data) > MAX_INFO_BYTES:
        raise FrameTooLarge(len(data), MAX_INFO_BYTES)
    try:
        document = msgspec.convert(_unpack(data, _MAX_DEPTH), type=_Document, strict=True)
    except msgspec.ValidationError as exc:
        raise MalformedMessage("info", reason=str(exc)) from exc
    arguments, by_name = document.forward_schema
    if len(arguments) != 1 or by_name or not isinstance(document.outputs_schema, _Descriptor):
        raise MalformedMessage("info", reason="only experts that take one tensor and give one can be called")
    info = ExpertInfo(
        inputs=_row_shape(arguments[0]),
        outputs=_row_shape(document.outputs_schema),
        expert=document.expert,
        classes=document.classes,
    )
    if info.classes and (len(info.outputs) != 1 or len(info.classes) > info.outputs[0]):
        raise MalformedMessage("info", reason=f"{len(info.classes)} classes in outputs of {info.outputs}")
    return info


def _row_shape(descriptor: _Descriptor) -> tuple[int, ...]:
    rows, *shape = descriptor.size
    sizes = tuple(size for size in shape if size is not None)
    if rows is not None or len(sizes) != len(shape):
        raise MalformedMessage("info", reason=f"a tensor of shape {descriptor.size} does not consist of rows")
    if descriptor.dtype != "torch.float32":
        raise MalformedMessage("info", reason=f"only float32 can be sent, not {descriptor.dtype!r}")
    return sizes


def _unpack(data: bytes, levels_left: int) -> Any:
    """Plain values: extensions as what is in them, arrays as tuples."""

    def extension(code: int, content: bytes) -> Any:
        if code not in (_TUPLE, _DESCRIPTOR):
            raise ValueError(f"extension type {code}")
        if levels_left == 0:
            raise ValueError(f"more than {_MAX_DEPTH} extensions inside one another")
        return _unpack(content, levels_left - 1)

    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            ext_hook=extension,
            max_str_len=MAX_INFO_BYTES,
            max_bin_len=MAX_INFO_BYTES,
            max_array_len=MAX_CLASSES_PER_EXPERT,
            max_map_len=MAX_CLASSES_PER_EXPERT,
            max_ext_len=MAX_INFO_BYTES,
        )
    except (ValueError, msgpack.UnpackException) as exc:
        raise MalformedMessage("info", reason=f"not MessagePack within the limits: {exc}") from exc
