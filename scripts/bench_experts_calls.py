"""What is asked less often: a teacher whose logits are kept, and experts that only get the rows they are gated for.

Legend: B batch, C class, D feature, E expert, K top-k, N images, H height, W width.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_experts_data import PIXELS, Ground
from torch import Tensor, nn

from experts.architectures.mlp import MlpArchitecture
from experts.checkpoint import flat_parameters
from experts.distillation import (
    DistillationConfig,
    DistillationData,
    DistillationRun,
    LogitCache,
    align_logits,
    data_digest,
)
from experts.generators import torch_generator
from experts.local import LocalExpert
from experts.mixture.output import dense_output, mixture_output
from experts.router.gating import Gates, gate_logits
from experts.sealed import tensors_digest
from experts.teachers.cnn import CnnTeacher, TeacherConfig, train_teacher
from experts.trunk.base import Trunk
from experts.trunk.images import prepare_images

__all__ = ["measure_cache", "measure_grouped"]

CACHE_BYTES = 1 << 30
FEATURE_DIM = 640
"""Of tap B4."""


class SectionTeacher(nn.Module):
    """A teacher that is a section of a larger network and a head; a `Teacher`."""

    def __init__(self, trunk: Trunk, head: nn.Module, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        self._trunk = trunk
        self._head = head

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Unnormalised scores ``(B, C)``."""
        with torch.no_grad():
            logits_BC: Tensor = self._head(self._trunk(images_BCHW))
        return logits_BC


class _Distillation:
    """One student taught for some epochs, its teacher asked anew in each of them or a cache instead."""

    def __init__(
        self, features_ND: Tensor, teacher: CnnTeacher | SectionTeacher, images_NCHW: Tensor, epochs: int
    ) -> None:
        self._features_ND = features_ND
        self._teacher = teacher
        self._images_NCHW = images_NCHW
        self._epochs = epochs

    def ask(self) -> Tensor:
        """The logits of all images by the teacher, as many at a time as the cache shows it."""
        return torch.cat([self._teacher.logits(images_BCHW) for images_BCHW in torch.split(self._images_NCHW, 256)])

    def digests(self) -> Mapping[str, str]:
        """Of the images and of the teacher, as the cache wants them."""
        teacher_digest = tensors_digest(self._teacher.state_dict(), {"classes": self._teacher.classes})
        return {"data_digest": data_digest(self._images_NCHW), "teacher_digest": teacher_digest}

    def plain(self) -> nn.Module:
        """The teacher runs in every epoch."""
        return self._train(self.ask)

    def cached(self, folder: Path) -> nn.Module:
        """The cache is asked in every epoch; in the first it is empty, and the digests are still to be made."""
        digests = self.digests()
        return self._train(lambda: self.from_cache(folder, digests))

    def from_cache(self, folder: Path, digests: Mapping[str, str]) -> Tensor:
        """The logits of all images, the teacher asked only if they are not there."""
        cache = LogitCache(folder, max_bytes=CACHE_BYTES)
        return cache.logits(self._teacher, self._images_NCHW, **digests).logits_NK

    def _train(self, logits: Callable[[], Tensor]) -> nn.Module:
        classes = self._teacher.classes
        module = MlpArchitecture(feature_dim=FEATURE_DIM, hidden=16, num_classes=len(classes)).build("student")
        generator = torch_generator(0, "student batches")
        config = DistillationConfig(steps=-(-len(self._features_ND) // DistillationConfig().batch_size))
        for _ in range(self._epochs):
            logits_NC = align_logits(logits(), classes, classes)
            data = DistillationData(features_ND=self._features_ND, teacher_logits_NC=logits_NC)
            for _ in DistillationRun(module, data, config, generator):
                pass
        return module


def measure_cache(ground: Ground, *, num_images: int, epochs: int, repeats: int, seed: int) -> dict[str, Any]:
    """Time of a distillation without the cache over that with it, for a small teacher and a large one.

    The small one is the reference CNN, trained for one epoch; the large one efficientnet-lite0 up to tap E5 and a head
    that is not trained, which changes no time.

    Returns: ``speedup`` by teacher, and what it was made from: seconds, those of one run of the teacher over all
        images and of one hit, and whether both students are the same to the last bit.
    """
    ground.tell("teacher cache: training the reference CNN for one epoch")
    part = ground.pool.select(range(num_images))
    pixels = ground.pool.images.shape[1]
    small_images = prepare_images(part.images, 1, pixels)
    cnn = train_teacher(small_images, part.labels, TeacherConfig(epochs=1), torch_generator(seed, "cnn"))
    section = ground.features("E5").trunk
    head = MlpArchitecture(feature_dim=section.feature_dim, hidden=128, num_classes=len(ground.classes))
    teachers: Mapping[str, tuple[CnnTeacher | SectionTeacher, Tensor]] = {
        "reference_cnn": (cnn, small_images),
        "efficientnet_lite0_to_e5": (
            SectionTeacher(section, head.build("head"), ground.classes),
            prepare_images(part.images, section.input_channels, PIXELS),
        ),
    }
    features_ND = ground.features("B4").pool[:num_images]
    measured: dict[str, Any] = {}
    for name, (teacher, images_NCHW) in teachers.items():
        distillation = _Distillation(features_ND, teacher, images_NCHW, epochs)
        measured[name] = _compare(ground, name, distillation, repeats)
    return {
        "speedup": {name: one["speedup"] for name, one in measured.items()},
        "by_teacher": measured,
        "setting": {"images": num_images, "epochs": epochs, "student": "16 hidden units on B4", "repeats": repeats},
    }


def _compare(ground: Ground, name: str, distillation: _Distillation, repeats: int) -> dict[str, Any]:
    without_s, with_s, runs_s, hits_s, same = [], [], [], [], True
    digests = distillation.digests()
    for number in range(repeats):
        ground.tell(f"teacher cache: {name}, {number + 1} of {repeats}")
        with tempfile.TemporaryDirectory(prefix="modulemesh-bench-") as name_of_folder:
            folder = Path(name_of_folder)
            seconds, plain = _timed(distillation.plain)
            without_s.append(seconds)
            seconds, cached = _timed(partial(distillation.cached, folder))
            with_s.append(seconds)
            runs_s.append(_timed(distillation.ask)[0])
            hits_s.append(_timed(partial(distillation.from_cache, folder, digests))[0])
        same = same and torch.equal(flat_parameters(plain), flat_parameters(cached))
    return {
        # Of pairs measured one after the other, so that a machine that gets slower counts against both.
        "speedup": median(first / second for first, second in zip(without_s, with_s, strict=True)),
        "without_s": without_s,
        "with_s": with_s,
        "hit_speedup": median(run / hit for run, hit in zip(runs_s, hits_s, strict=True)),
        "teacher_run_s": median(runs_s),
        "hit_s": median(hits_s),
        "students_bit_equal": same,
    }


def measure_grouped(
    tell: Callable[[str], None], *, num_rows: int, experts: tuple[int, ...], repeats: int, seed: int
) -> dict[str, Any]:
    """Rows a second of `mixture_output`, which groups rows per expert, over those of `dense_output`.

    Each expert has two classes, each shared with another, and 8 hidden units on 640 features. Both sides have the
    gates already.

    Returns: ``ratio`` and ``difference`` (the largest of any output) by case, and rows a second of both.
    """
    cases: dict[str, Any] = {}
    architecture = MlpArchitecture(feature_dim=FEATURE_DIM, hidden=8, num_classes=2)
    for num_experts in experts:
        classes = tuple(f"class-{column:04d}" for column in range(num_experts))
        # Neighbours share a class, so that outputs are sums.
        local = {
            f"expert-{expert:04d}": LocalExpert((name, classes[expert - 1]), architecture.build(name))
            for expert, name in enumerate(classes)
        }
        generator = torch_generator(seed, f"rows of {num_experts} experts")
        features_BD = torch.randn(num_rows, FEATURE_DIM, generator=generator)
        logits_BE = 3.0 * torch.randn(num_rows, num_experts, generator=generator)
        for top_k in (1, 2):
            tell(f"combine: {num_experts} experts, top {top_k}")
            gates = gate_logits(logits_BE, tuple(local), top_k=top_k)
            cases[f"{num_experts}_experts_top_{top_k}"] = _grouped_against_dense(
                local, gates, features_BD, classes, repeats
            )
    return {
        "ratio": {name: case["ratio"] for name, case in cases.items()},
        "difference": max(case["difference"] for case in cases.values()),
        "cases": cases,
        "setting": {"rows": num_rows, "features": FEATURE_DIM, "hidden": 8, "classes": 2, "repeats": repeats},
    }


def _grouped_against_dense(
    experts: Mapping[str, LocalExpert], gates: Gates, features_BD: Tensor, classes: tuple[str, ...], repeats: int
) -> dict[str, Any]:
    grouped_s, dense_s, difference = [], [], 0.0
    for _ in range(repeats):
        seconds, combined = _timed(lambda: mixture_output(experts, gates, features_BD, classes))
        grouped_s.append(seconds)
        seconds, outputs_BC = _timed(lambda: dense_output(experts, gates, features_BD, classes))
        dense_s.append(seconds)
        difference = max(difference, (combined.outputs_BC - outputs_BC).abs().max().item())
    return {
        "ratio": median(dense / grouped for dense, grouped in zip(dense_s, grouped_s, strict=True)),
        "difference": difference,
        "grouped_rows_per_s": len(features_BD) / median(grouped_s),
        "dense_rows_per_s": len(features_BD) / median(dense_s),
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began_s = time.perf_counter()
    result = work()
    return time.perf_counter() - began_s, result
