"""Domains made of one data set: every domain shows images of its own, each in the domain's way.

Legend: B images, H height, W width.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from experts.data.dataset import ImageDataset
from experts.errors import SettingOutOfRange
from experts.evaluation.scenarios.base import Scenario, ScenarioTask, shuffled
from experts.evaluation.scenarios.split import Parts

__all__ = ["Shown", "dealt_domains"]

Shown = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""How a domain shows images: uint8 ``(B, H, W)`` in and out."""


def dealt_domains(
    name: str,
    parts: Parts,
    domains: Sequence[tuple[str, Shown]],
    *,
    classes: tuple[str, ...],
    order: int,
    images_per_domain: int,
) -> Scenario:
    """A domain-incremental scenario of one task a domain, each with all test images.

    Args:
        name: The scenario's.
        parts: The data set's.
        domains: Names and ways of showing, in the order in which they are learned.
        classes: The data set's.
        order: Of the training images before they are dealt out: 0 as they come, another number another one.
        images_per_domain: Training images of each, at least 1. Domains share an image only if there are too few.

    Raises:
        SettingOutOfRange: If ``images_per_domain`` is below 1, or more than there are.
    """
    train, test = parts
    if not 1 <= images_per_domain <= len(train):
        raise SettingOutOfRange("images_per_domain", images_per_domain, allowed=f"1 to {len(train)}")
    rows = np.array(shuffled(range(len(train)), order, f"{name}/images"))
    tasks = []
    for number, (domain, shown) in enumerate(domains):
        dealt = train.select(rows[(number * images_per_domain + np.arange(images_per_domain)) % len(train)])
        tasks.append(
            ScenarioTask(
                name=domain,
                train=ImageDataset(shown(dealt.images), dealt.labels),
                test=ImageDataset(shown(test.images), test.labels),
                classes=classes,
            )
        )
    return Scenario(name=name, kind="domain-incremental", tasks=tuple(tasks))
