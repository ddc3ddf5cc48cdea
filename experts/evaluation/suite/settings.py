"""What each method that trains a network is run with, on either input and in each kind of scenario.

Each was given the same budget of settings, which were tried on held-out training images
(scripts/bench_scenarios_tuning.py). Where its protocols are repeated, they are run with what Mammoth
(github.com/aimagelab/mammoth) publishes for Split and Rotated MNIST.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from experts.evaluation.scenarios.base import Kind
from experts.evaluation.suite.method import Input

__all__ = [
    "CLASSES_ON_E5",
    "EXPERT_HIDDEN",
    "PUBLISHED_ROTATED",
    "PUBLISHED_SPLIT",
    "SAME_BYTES",
    "TUNED",
    "Given",
    "Settings",
]

EXPERT_HIDDEN: Mapping[Kind, int] = {"class-incremental": 8, "domain-incremental": 16, "task-incremental": 16}
"""Units of an expert: eight serve two classes, 16 ten."""

SAME_BYTES = "DER++ same bytes"
"""DER++ that keeps as many bytes as routed experts do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a method is run with; each takes those that it has."""

    lr: float
    batch_size: int = 10
    """New images a step."""
    replay_size: int = 10
    """Kept ones beside them, of each draw."""
    strength: float = 0.0
    """lambda of EWC and LwF, and of a mixture's balance."""
    alpha: float = 0.5
    """Weight of the logits in DER++, of the labels in distillation."""
    beta: float = 0.5
    """Weight of the labels in DER++."""
    weight_decay: float = 0.0
    passes: int = field(default=1, repr=False)  # its `TrainingConfig`, which is told beside it, says how many in all
    """Over each task, as multiples of the fewest: see `networks.fewest_passes`."""


PUBLISHED_SPLIT: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.03),
    "EWC": Settings(lr=0.03, strength=180.0),
    "LwF": Settings(lr=0.03, strength=1.0, weight_decay=5e-4),
    "iCaRL 200": Settings(lr=0.1, weight_decay=2e-5),
    "iCaRL 500": Settings(lr=0.1, weight_decay=2e-5),
    "ER 200": Settings(lr=0.01),
    "ER 500": Settings(lr=0.1),
    "DER++ 200": Settings(lr=0.03, replay_size=128, alpha=0.2, beta=1.0),
    "DER++ 500": Settings(lr=0.03, alpha=1.0, beta=0.5),
}
"""EWC's 90 is written as 180, since its authors' penalty has a half that Mammoth's has not. Mammoth also weighs every
squared gradient by the probability of its label, which its authors do not, and neither do we."""

PUBLISHED_ROTATED: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.2, batch_size=128),
    "EWC": Settings(lr=0.1, batch_size=128, strength=1.4),
    "ER 500": Settings(lr=0.2, batch_size=128, replay_size=128),
    "DER++ 200": Settings(lr=0.1, batch_size=128, replay_size=128, alpha=1.0, beta=0.5),
    "DER++ 500": Settings(lr=0.2, batch_size=128, replay_size=128, alpha=0.5, beta=1.0),
}
"""Of the protocol with rotated domains of 60,000 images, as Mammoth has them for Rotated MNIST."""

_CLASSES_ON_PIXELS: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.003, passes=16),
    "EWC": Settings(lr=0.003, strength=100.0, passes=4),
    "LwF": Settings(lr=0.03, strength=1.0, passes=4),
    "iCaRL 200": Settings(lr=0.09, passes=16),
    "iCaRL 500": Settings(lr=0.3, passes=16),
    "ER 200": Settings(lr=0.03, passes=4),
    "ER 500": Settings(lr=0.03),
    "DER++ 200": Settings(lr=0.03, replay_size=32),
    "DER++ 500": Settings(lr=0.03, replay_size=32, alpha=0.2, beta=1.0, passes=4),
    SAME_BYTES: Settings(lr=0.009, replay_size=32, alpha=0.2, beta=1.0, passes=16),
    "monolithic distillation": Settings(lr=0.03, alpha=0.0, passes=4),
    "mixture of experts": Settings(lr=0.01, strength=0.3),
}

_CLASSES_ON_TRUNK: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.003),
    "EWC": Settings(lr=0.003, strength=1000.0),
    "LwF": Settings(lr=9e-05, strength=1.0, passes=4),
    "iCaRL 200": Settings(lr=0.3, passes=16),
    "iCaRL 500": Settings(lr=0.6, passes=16),
    "ER 200": Settings(lr=0.1),
    "ER 500": Settings(lr=0.1),
    "DER++ 200": Settings(lr=0.03, replay_size=32, alpha=0.2, beta=1.0),
    "DER++ 500": Settings(lr=0.03, replay_size=32, passes=4),
    SAME_BYTES: Settings(lr=0.1, replay_size=32),
    "monolithic distillation": Settings(lr=0.001, alpha=0.2),
    "mixture of experts": Settings(lr=0.01, strength=1.0),
}

CLASSES_ON_E5: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.0003, passes=4),
    "EWC": Settings(lr=0.003, strength=3000.0),
    "LwF": Settings(lr=9e-05, strength=1.0, passes=4),
    "iCaRL 200": Settings(lr=0.3, passes=16),
    "iCaRL 500": Settings(lr=0.3, passes=16),
    "ER 200": Settings(lr=0.03),
    "ER 500": Settings(lr=0.1),
    "DER++ 200": Settings(lr=0.03, replay_size=32),
    "DER++ 500": Settings(lr=0.009, replay_size=32, passes=4),
    SAME_BYTES: Settings(lr=0.03, replay_size=32, alpha=0.2, beta=1.0, passes=4),
    "monolithic distillation": Settings(lr=0.003, alpha=0.0, passes=4),
    "mixture of experts": Settings(lr=0.003, strength=1.0, passes=4),
}
"""For a head on tap E5, from Split Fashion-MNIST too."""

_DOMAINS_ON_TRUNK: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.003, passes=16),
    "EWC": Settings(lr=0.009, strength=30.0, passes=16),
    "LwF": Settings(lr=0.003, strength=1.0, passes=16),
    "iCaRL 200": Settings(lr=1.0, passes=4),
    "iCaRL 500": Settings(lr=0.3, passes=4),
    "ER 200": Settings(lr=0.2, passes=4),
    "ER 500": Settings(lr=0.06, passes=4),
    "DER++ 200": Settings(lr=0.009, replay_size=32, passes=16),
    "DER++ 500": Settings(lr=0.06, replay_size=32, passes=4),
    SAME_BYTES: Settings(lr=0.2, replay_size=32, passes=4),
    "monolithic distillation": Settings(lr=0.009, alpha=0.2, passes=4),
    "mixture of experts": Settings(lr=0.03, strength=0.3, passes=4),
}

_TASKS_ON_TRUNK: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.1, passes=4),
    "EWC": Settings(lr=0.03, strength=100.0, passes=4),
    "LwF": Settings(lr=0.01, strength=0.1, passes=4),
    "iCaRL 200": Settings(lr=4.0),
    "iCaRL 500": Settings(lr=4.0),
    "ER 200": Settings(lr=0.2, passes=4),
    "ER 500": Settings(lr=0.2, passes=4),
    "DER++ 200": Settings(lr=0.1, replay_size=32),
    "DER++ 500": Settings(lr=0.03, replay_size=32, alpha=0.2, beta=1.0, passes=4),
    SAME_BYTES: Settings(lr=0.03, alpha=0.2, beta=1.0, passes=4),
    "monolithic distillation": Settings(lr=0.01, alpha=0.0, passes=4),
    "mixture of experts": Settings(lr=0.03, strength=0.3),
}

_DOMAINS_ON_PIXELS: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.0003, passes=4),
    "EWC": Settings(lr=0.009, strength=10.0, passes=16),
    "LwF": Settings(lr=0.009, strength=1.0, passes=16),
    "iCaRL 200": Settings(lr=0.3, passes=16),
    "iCaRL 500": Settings(lr=0.3, passes=16),
    "ER 200": Settings(lr=0.06, passes=4),
    "ER 500": Settings(lr=0.03, passes=16),
    "DER++ 200": Settings(lr=0.1, replay_size=32, alpha=0.2, beta=1.0, passes=4),
    "DER++ 500": Settings(lr=0.009, replay_size=32, passes=16),
    SAME_BYTES: Settings(lr=0.03, replay_size=32, alpha=0.2, beta=1.0, passes=16),
    "monolithic distillation": Settings(lr=0.003, alpha=0.0, passes=4),
    "mixture of experts": Settings(lr=0.009, strength=1.0, passes=4),
}

_TASKS_ON_PIXELS: Mapping[str, Settings] = {
    "SGD": Settings(lr=0.1),
    "EWC": Settings(lr=0.009, strength=100.0, passes=4),
    "LwF": Settings(lr=0.03, strength=0.3, passes=4),
    "iCaRL 200": Settings(lr=2.0, passes=4),
    "iCaRL 500": Settings(lr=2.0),
    "ER 200": Settings(lr=0.1, passes=4),
    "ER 500": Settings(lr=0.2, passes=4),
    "DER++ 200": Settings(lr=0.03, replay_size=32, passes=4),
    "DER++ 500": Settings(lr=0.1, replay_size=32, passes=4),
    SAME_BYTES: Settings(lr=0.1, replay_size=32, passes=4),
    "monolithic distillation": Settings(lr=0.01, alpha=0.0),
    "mixture of experts": Settings(lr=0.1, strength=1.0),
}

Given = Mapping[Input, Mapping[str, Settings]]
"""By input and name of the method."""

TUNED: Mapping[Kind, Given] = {
    "class-incremental": {"pixels": _CLASSES_ON_PIXELS, "trunk": _CLASSES_ON_TRUNK},
    "domain-incremental": {"pixels": _DOMAINS_ON_PIXELS, "trunk": _DOMAINS_ON_TRUNK},
    "task-incremental": {"pixels": _TASKS_ON_PIXELS, "trunk": _TASKS_ON_TRUNK},
}
"""On the trunk for a head on tap B4. Classes have theirs from Split Fashion-MNIST, domains from the rotated one, told
tasks from the four sets."""
