"""Weights as bytes: safetensors only, the same bytes for the same weights, checked before they are believed.

The format (https://huggingface.co/docs/safetensors, "Format"): an unsigned 64-bit header length, a JSON
header, then raw tensors. It cannot carry code, which is why pickle is used nowhere.
"""

import copy
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from experts.errors import CorruptWeights, ShapeMismatch
from experts.materialise import materialise

__all__ = [
    "MAX_HEADER_BYTES",
    "flat_parameters",
    "load_flat",
    "load_tensors",
    "load_weights",
    "read_safetensors",
    "tensors_from_bytes",
    "tensors_to_bytes",
    "unflatten",
    "weights_to_array",
    "weights_to_bytes",
    "with_parameters",
    "write_safetensors",
]

MAX_HEADER_BYTES = 256 * 1024
"""A tensor takes 100 bytes of header and no module here has a thousand; peers must not make us parse more."""

_CONFIG = "modulemesh"


def weights_to_bytes(module: nn.Module) -> bytes:
    """All parameters and buffers as float32 safetensors, byte for byte the same for equal weights.

    Raises: CorruptWeights: If a weight is not float32 or not finite: what nobody could load is not written.
    """
    return tensors_to_bytes(module.state_dict())


def weights_to_array(module: nn.Module) -> npt.NDArray[np.uint8]:
    """The bytes of `weights_to_bytes`, uint8 ``(N,)``, made so that other threads can run meanwhile.

    The library holds the interpreter's lock for as long as it copies, twice: 60 ms for ten million parameters.

    Raises: CorruptWeights: As `weights_to_bytes`.
    """
    tensors = module.state_dict()
    _require_finite_float32(tensors)
    header: dict[str, object] = {}
    end = 0
    for name, tensor in sorted(tensors.items()):
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data = np.empty(8 + len(text) + end, np.uint8)
    data[:8] = np.frombuffer(len(text).to_bytes(8, "little"), np.uint8)
    data[8 : 8 + len(text)] = np.frombuffer(text, np.uint8)
    begin = 8 + len(text)
    for _, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8)
        data[begin : begin + len(values)] = values
        begin += len(values)
    return data


def load_weights(module: nn.Module, data: bytes) -> None:
    """Replaces the module's parameters and buffers by those in ``data``; on an error the module is unchanged.

    Raises: CorruptWeights: If ``data`` is not safetensors, its header exceeds `MAX_HEADER_BYTES`, a name is
        missing or foreign, a shape differs, or a value is not a finite float32.
    """
    tensors, _ = tensors_from_bytes(data)
    load_tensors(module, tensors)


def load_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies ``tensors`` into the module's parameters and buffers; on an error the module is unchanged.

    A module on the meta device moves to the CPU once the tensors fit: its shapes, which a peer may have
    chosen, take no memory before.

    Raises: CorruptWeights: If a name is missing or foreign, or a shape differs.
    """
    own = module.state_dict()
    if tensors.keys() != own.keys():
        missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise CorruptWeights(f"missing tensors {missing}, foreign tensors {foreign}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CorruptWeights(f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
    if any(tensor.is_meta for tensor in own.values()):
        materialise(module)
    # In place: an optimizer may hold these very parameters.
    module.load_state_dict(tensors)


def tensors_to_bytes(tensors: Mapping[str, torch.Tensor], config: Mapping[str, object] | None = None) -> bytes:
    """Named float32 tensors, with a JSON object beside them, as deterministic safetensors.

    Args:
        tensors: On any device; copied to contiguous CPU memory.
        config: Goes into the header as canonical JSON; None leaves it out.
    Raises: CorruptWeights: If a tensor is not float32 or not finite.
    """
    _require_finite_float32(tensors)
    return write_safetensors(tensors, config)


def tensors_from_bytes(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Reads what `tensors_to_bytes` wrote; safe on bytes from anyone.

    Returns: The tensors on the CPU (copies), and the config, empty if the bytes hold none.
    Raises: CorruptWeights: If the bytes are not such a file, within `MAX_HEADER_BYTES`, of finite float32.
    """
    tensors, config = read_safetensors(data)
    _require_finite_float32(tensors)
    return tensors, config


def write_safetensors(tensors: Mapping[str, torch.Tensor], config: Mapping[str, object] | None) -> bytes:
    """As `tensors_to_bytes`, of any values and types."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    # One metadata entry only: safetensors keeps several in an order that changes from run to run.
    metadata = None if config is None else {_CONFIG: json.dumps(config, sort_keys=True, separators=(",", ":"))}
    return save(contiguous, metadata=metadata)


def read_safetensors(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """As `tensors_from_bytes`, of any values and types.

    Raises: CorruptWeights: If the bytes are not such a file, within `MAX_HEADER_BYTES`.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > MAX_HEADER_BYTES:
        raise CorruptWeights(f"header of {header_bytes} bytes in {len(data)}, {MAX_HEADER_BYTES} allowed")
    try:
        tensors = load(data)
        # Parsed only after safetensors, which bounds its depth.
        config = json.loads(json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {}).get(_CONFIG, "{}"))
        # JSON can spell half a character, which whoever writes the text as UTF-8 would fail on.
        json.dumps(config, ensure_ascii=False).encode()
    except (SafetensorError, KeyError, ValueError, RecursionError) as exc:
        raise CorruptWeights(f"not safetensors: {exc}") from exc
    if not isinstance(config, dict):
        raise CorruptWeights("the config is not an object")
    return tensors, config


def flat_parameters(module: nn.Module) -> torch.Tensor:
    """The parameters, in sorted order of their names, as one new float32 vector ``(num_parameters,)``."""
    return torch.cat([parameter.detach().float().cpu().flatten() for _, parameter in _sorted_parameters(module)])


def unflatten(module: nn.Module, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inverse of `flat_parameters`: views of ``vector`` under the module's parameter names and shapes.

    Raises: ShapeMismatch: If the vector is not as long as the module has parameters.
    """
    parameters = _sorted_parameters(module)
    sizes = [parameter.numel() for _, parameter in parameters]
    if vector.shape != (sum(sizes),):
        raise ShapeMismatch("flat parameters", expected=(sum(sizes),), got=vector.shape)
    pieces = torch.split(vector, sizes)
    return {name: piece.view_as(parameter) for (name, parameter), piece in zip(parameters, pieces, strict=True)}


def load_flat(module: nn.Module, vector: torch.Tensor) -> None:
    """Copies ``vector`` (as from `flat_parameters`) into the module's parameters in place.

    Raises: ShapeMismatch: If the vector is not as long as the module has parameters.
    """
    values = unflatten(module, vector)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(values[name])


def with_parameters(module: nn.Module, vector: torch.Tensor) -> nn.Module:
    """A copy of the module with the parameters of ``vector`` (as from `flat_parameters`), in its memory if float32.

    Copied and not built: initial weights, which are drawn one by one, would be overwritten at once.

    Raises: ShapeMismatch: If the vector is not as long as the module has parameters.
    """
    values = unflatten(module, vector.float())
    # To a deep copy these are copied already.
    copied = {id(own): nn.Parameter(values[name], own.requires_grad) for name, own in module.named_parameters()}
    return copy.deepcopy(module, copied)


def _sorted_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return sorted(module.named_parameters(), key=lambda item: item[0])


def _require_finite_float32(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise CorruptWeights(f"{name} is {tensor.dtype}, not float32")
        # numpy's is ten times as fast as torch's.
        if not np.isfinite(tensor.detach().cpu().numpy()).all():
            raise CorruptWeights(f"{name} has values that are not finite")
