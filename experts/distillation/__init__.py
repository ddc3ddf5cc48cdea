"""From teachers to an expert: the loss, what it is taken over, the run that lowers it, and logits kept on disk."""

from experts.distillation.cache import CachedLogits, CacheOutcome, LogitCache, data_digest
from experts.distillation.config import DistillationConfig
from experts.distillation.data import DistillationData, TeacherLogits
from experts.distillation.loss import UNLABELLED, align_logits, distillation_loss
from experts.distillation.progress import DistillationProgress, ProgressMeter
from experts.distillation.run import DistillationRun, TrainingDiverged

__all__ = [
    "CacheOutcome",
    "CachedLogits",
    "DistillationConfig",
    "DistillationData",
    "DistillationProgress",
    "DistillationRun",
    "LogitCache",
    "ProgressMeter",
    "TeacherLogits",
    "TrainingDiverged",
    "UNLABELLED",
    "align_logits",
    "data_digest",
    "distillation_loss",
]
