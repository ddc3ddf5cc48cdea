"""What torch would compute on, told without importing it: that takes seconds, and memory on the GPU."""

import ast
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnode.doctor.finding import Finding
from meshnode.doctor.subject import Subject

__all__ = ["Machine", "check_gpu", "judge", "look_at_machine", "torch_builds"]

DRIVER = Path("/proc/driver/nvidia")
"""Made by NVIDIA's kernel module: ``version``, and ``gpus`` with a folder each."""

CUDA_HINT = "Install a CUDA build of torch: https://pytorch.org/get-started"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What there is for torch to use."""

    torch: bool
    """Whether torch is installed."""
    built_for: str | None
    """Version of CUDA or ROCm that this torch is built for, with its name; None is a build for the CPU."""
    driver: bool
    """Whether NVIDIA's driver is loaded."""
    num_gpus: int
    """NVIDIA GPUs that the driver sees."""


def check_gpu(subject: Subject) -> Sequence[Finding]:
    """The daemon's device and its reason; without a daemon, whether the device that is set can be had."""
    if device := subject.told("device"):
        return [Finding("gpu", "ok", f"the daemon computes on {device.get('used')} ({device.get('reason')})")]
    if subject.config is None:
        return []
    compute = subject.config.compute
    return [judge(compute.device, look_at_machine(), required=compute.require_gpu)]


def judge(setting: str, machine: Machine, *, required: bool) -> Finding:
    """Whether ``compute.device`` can be had; see `meshnode.device.choose_device`, which decides it at the start.

    Args:
        setting: ``auto``, ``cpu`` or ``cuda:N``.
        machine: What there is.
        required: Whether the CPU is no answer.
    """
    if not machine.torch:
        return Finding("gpu", "problem", "torch is not installed: a daemon cannot start", "pip install torch")
    if setting == "cpu":
        return Finding("gpu", "ok", "computes on the CPU, as compute.device says")
    wanted = setting if setting != "auto" else "a GPU" if required else None
    missing, hint = _missing(setting, machine)
    if missing is None:
        return Finding("gpu", "ok", f"torch is built for {machine.built_for}")
    if wanted is not None:
        hint += ' Or set device = "auto" and require_gpu = false in [compute].'
        return Finding("gpu", "problem", f"{wanted} is asked for, and {missing}", hint)
    if machine.driver:
        return Finding("gpu", "note", f"computes on the CPU, though NVIDIA's driver is loaded: {missing}", hint)
    return Finding("gpu", "ok", f"computes on the CPU: {missing}")


def _missing(setting: str, machine: Machine) -> tuple[str | None, str]:
    """What keeps torch from the GPU, None if nothing is known to; and what helps."""
    if machine.built_for is None:
        return "this torch is built without CUDA", CUDA_HINT + "."
    if machine.built_for.startswith("ROCm"):
        return None, ""  # AMD's driver is not looked at
    if not machine.driver:
        return "NVIDIA's driver is not loaded", "Install the driver and see that `nvidia-smi` lists the GPU."
    number = int(setting.removeprefix("cuda:")) if setting.startswith("cuda:") else 0
    if number >= machine.num_gpus:
        return f"the number of GPUs that the driver sees is {machine.num_gpus}", "See what `nvidia-smi` lists."
    return None, ""


def look_at_machine(driver: Path = DRIVER) -> Machine:
    """Read the installed torch's version file and what the driver says of itself."""
    spec = importlib.util.find_spec("torch")  # finds the package, runs nothing of it
    gpus = driver / "gpus"
    return Machine(
        torch=spec is not None,
        built_for=torch_builds(Path(spec.origin).with_name("version.py")) if spec and spec.origin else None,
        driver=(driver / "version").exists(),
        num_gpus=len(list(gpus.iterdir())) if gpus.is_dir() else 0,
    )


def torch_builds(version_py: Path) -> str | None:
    """What torch's generated ``version.py`` says that it is built for, such as ``CUDA 12.4``; None for the CPU."""
    try:
        text = version_py.read_text(encoding="utf-8")
    except OSError:
        return None
    for variable, name in (("cuda", "CUDA"), ("hip", "ROCm")):
        found = re.search(rf"^{variable}(?:\s*:[^=\n]*)?\s*=\s*(None|'[^'\n]*'|\"[^\"\n]*\")", text, re.MULTILINE)
        value = ast.literal_eval(found[1]) if found else None
        if value is not None:
            return f"{name} {value}"
    return None
