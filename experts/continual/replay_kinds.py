"""Memories of past data by the name of their kind: made from settings, and from what any of them saved."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from experts.continual.balanced import BalancedBuffer
from experts.continual.buffers import ReplayBuffer
from experts.continual.herding import Features, HerdingBuffer
from experts.continual.replay import ReservoirBuffer
from experts.errors import CorruptState, SettingOutOfRange
from experts.sealed import unseal

__all__ = ["Kind", "ReplayConfig", "make_replay", "replay_from_bytes", "replay_under"]

Kind = Literal["balanced", "herding", "reservoir"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """Which memory.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    kind: Kind = "balanced"
    """``reservoir`` samples the stream uniformly, ``balanced`` holds classes alike, ``herding`` their exemplars."""

    max_bytes: int = 400_000
    """Of pixels, at least 1; the default is 510 images of 28 x 28."""

    capacity: int | None = None
    """Images, at least 1; None if only bytes bound them."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingOutOfRange("kind", self.kind, allowed=", ".join(get_args(Kind)))
        if self.max_bytes < 1:
            raise SettingOutOfRange("max_bytes", self.max_bytes, allowed="at least 1")
        if self.capacity is not None and self.capacity < 1:
            raise SettingOutOfRange("capacity", self.capacity, allowed="at least 1")


def make_replay(config: ReplayConfig, generator: torch.Generator, features: Features) -> ReplayBuffer:
    """An empty memory.

    Args:
        config: Which.
        generator: Decides who stays, and belongs to it alone; herding draws nothing.
        features: What herding takes the means of.
    """
    if config.kind == "herding":
        return HerdingBuffer(config.capacity, features, max_bytes=config.max_bytes)
    kind = BalancedBuffer if config.kind == "balanced" else ReservoirBuffer
    return kind(config.capacity, generator, max_bytes=config.max_bytes)


def replay_under(
    config: ReplayConfig, buffer: ReplayBuffer, generator: torch.Generator, features: Features
) -> ReplayBuffer:
    """The memory itself if it is what the settings ask for; else one that is, to which what was kept is shown.

    Of the stream such a one has seen no more than that, so that what comes next counts for more than it would have.

    Args:
        config: Which memory.
        buffer: As it was saved.
        generator: As for `make_replay`.
        features: Likewise.

    Raises:
        SettingOutOfRange: Not even one of the images that are kept is within the bound.
    """
    wanted, images = make_replay(config, generator, features), buffer.images
    if not len(images):
        is_wanted = (buffer.capacity, buffer.max_bytes) == (wanted.capacity, wanted.max_bytes)
    else:
        is_wanted = buffer.limit_of(images) == wanted.limit_of(images)
    if is_wanted and buffer.kind == wanted.kind:
        return buffer
    if len(images):
        wanted.add(images, buffer.labels)
    return wanted


def replay_from_bytes(data: bytes, features: Features) -> ReplayBuffer:
    """The memory that any kind's ``to_bytes`` saved, those from before there were kinds included.

    Args:
        data: The bytes.
        features: As for `make_replay`.

    Raises:
        CorruptState: If they are not those of a memory.
    """
    try:
        kind = unseal(data, "replay buffer")[1].get("kind")
    except CorruptState:
        return ReservoirBuffer.from_bytes(data)  # It has no seal, nor does it have the tensors of the other kinds.
    if kind == HerdingBuffer.kind:
        return HerdingBuffer.from_bytes(data, features)
    return BalancedBuffer.from_bytes(data)
