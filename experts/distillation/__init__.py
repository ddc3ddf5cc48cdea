"""From teachers to an expert: the loss, its data, the run that lowers it, the stitch to a section, kept logits."""

from experts.distillation.cache import CachedLogits, CacheOutcome, LogitCache, data_digest
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData, TeacherLogits
from experts.distillation.loss import UNLABELLED, align_logits, distillation_loss
from experts.distillation.progress import DistillationProgress, ProgressMeter
from experts.distillation.run import DistillationRun
from experts.distillation.stitch import StitchConfig, StitchData, StitchRun, least_squares_stitch

__all__ = [
    "CacheOutcome",
    "CachedLogits",
    "DistillationConfig",
    "DistillationData",
    "DistillationProgress",
    "DistillationRun",
    "LogitCache",
    "ProgressMeter",
    "StitchConfig",
    "StitchData",
    "StitchRun",
    "TeacherLogits",
    "UNLABELLED",
    "align_logits",
    "data_digest",
    "distillation_loss",
    "least_squares_stitch",
]
