"""Which device torch computes on, and why: a silent fall-back to the CPU would be a defect."""

from dataclasses import dataclass

import torch

from meshnode.errors import ResourceAbsent

__all__ = ["Device", "choose_device"]


@dataclass(frozen=True, slots=True)
class Device:
    used: str
    """``cpu`` or ``cuda:N``."""
    reason: str


def choose_device(setting: str, *, require_gpu: bool) -> Device:
    """The device for ``compute.device``.

    Args:
        setting: ``auto``, ``cpu`` or ``cuda:N``.
        require_gpu: Whether the CPU is no answer.

    Raises:
        ResourceAbsent: A GPU is asked for and there is none (of that number).
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cpu":
        return Device("cpu", "set by compute.device")
    if setting.startswith("cuda:"):
        if int(setting.removeprefix("cuda:")) >= num_gpus:
            raise ResourceAbsent(
                f"compute.device is {setting}, and this machine has {num_gpus} GPUs that torch can use",
                hint='Set compute.device = "auto", or install a CUDA build of torch.',
            )
        return Device(setting, "set by compute.device")
    if num_gpus:
        return Device("cuda:0", f"the first of {num_gpus} GPUs")
    if require_gpu:
        raise ResourceAbsent("a GPU is required, and torch finds none", hint="Drop --require-gpu to use the CPU.")
    cause = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU"
    return Device("cpu", cause)
