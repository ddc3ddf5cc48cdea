"""Contributions by name, and the sum of several of which only the names are left.

A group sum is what remains of contributions whose own bytes were given up: their exact sum, and a version vector that
says whose data of which task at which version is in it. It can be counted or left out as a whole; a single member
comes out of it only with that member's bytes in hand, which then leaves no trace (see `experts.router.exact`).

Legend: C class, D feature, L the two limbs of an exact sum, T packed upper triangle of D x D.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass

import torch

from experts.errors import UnsafeStatistics
from experts.router.exact import LARGEST, MAX_PARTS, ExactSum
from experts.router.packing import pack, unpack
from experts.router.statistics import checked_counts, checked_fingerprint, checked_name
from experts.router.symmetric import require_positive

__all__ = ["ContributionKey", "GroupSum", "Member", "joined_groups"]

ContributionKey = tuple[str, str]
"""(peer, task). Of one key the highest version counts."""

_SLACK = 1e-6
"""Share of the sum of squares by which an eigenvalue of the scatter may be below 0: that of eight-bit contributions,
whose correlations may have it; float32 and the difference of T and the means' part stay far below."""

_MAX_VERSION = 2**63 - 1

_TYPES: Mapping[str, torch.dtype] = {"moment": torch.int64, "weighted": torch.int64}


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One contribution by name: everything but its bytes.

    Raises:
        UnsafeStatistics: If a field is of another type or outside its range.
    """

    peer: str
    """Whose data it is about; not empty."""

    task: str
    """Of which of this peer's tasks; not empty."""

    version: int
    """1 to 2^63 - 1; a higher one replaces a lower one of the same peer and task."""

    digest: str
    """SHA-256 of its bytes. Of two contents of one version the greater digest counts, so that all agree."""

    issued_at: float
    """When the contributor says it was made, Unix seconds; only decides what counts as old."""

    def __post_init__(self) -> None:
        # Names come from peers; exact types, since True is an int to isinstance.
        checked_name(self.peer)
        checked_name(self.task)
        if type(self.version) is not int or not 1 <= self.version <= _MAX_VERSION:
            raise UnsafeStatistics(f"version {self.version!r} of a contribution")
        if type(self.digest) is not str or re.fullmatch("[0-9a-f]{64}", self.digest) is None:
            raise UnsafeStatistics("the digest of a contribution is none")
        if type(self.issued_at) is not float or not math.isfinite(self.issued_at):
            raise UnsafeStatistics(f"a contribution issued at {self.issued_at!r}")

    @property
    def key(self) -> ContributionKey:
        return self.peer, self.task

    @property
    def rank(self) -> tuple[int, str]:
        """Of contributions with one key the one of greatest rank counts; equal ranks are equal contributions."""
        return self.version, self.digest

    @property
    def num_bytes(self) -> int:
        """What the name takes: its strings, and eight bytes each for version and time."""
        return len(self.peer.encode()) + len(self.task.encode()) + len(self.digest) + 16


@dataclass(frozen=True, eq=False)
class GroupSum:
    """The exact sum of contributions, and which ones."""

    members: Mapping[ContributionKey, Member]
    """The version vector, at least one entry, by key."""

    total: ExactSum
    """Of exactly ``members``; treated as immutable."""

    def to_bytes(self) -> bytes:
        """Deterministic bytes: equal groups give equal ones.

        Raises:
            UnsafeStatistics: If names and counts are too long for a header, about a thousand members.
        """
        names = sorted(self.total.counts)
        weighted_CLD = torch.stack([self.total.weighted_LD[name] for name in names])
        config = {
            "counts": self.total.counts,
            "fingerprint": self.total.fingerprint,
            "members": [list(astuple(self.members[key])) for key in sorted(self.members)],
        }
        return pack({"moment": self.total.moment_LT, "weighted": weighted_CLD}, config)

    @classmethod
    def from_bytes(cls, data: bytes) -> "GroupSum":
        """A group from a peer's bytes. That it is the sum of its members only they could tell: a group is worth
        what its sender's word is.

        Raises:
            UnsafeStatistics: If the bytes are malformed, shapes, classes or members disagree, a key occurs twice,
                a number is beyond what so many contributions add up to, or the scatter is not positive
                semi-definite up to the rounding of what was added.
        """
        tensors, config = unpack(data, _TYPES)
        if config.keys() != {"counts", "fingerprint", "members"}:
            raise UnsafeStatistics(f"fields {sorted(config)}")
        counts, members = checked_counts(config["counts"]), _checked_members(config["members"])
        fingerprint = None if config["fingerprint"] is None else checked_fingerprint(config["fingerprint"])
        weighted_CLD, moment_LT = tensors["weighted"], tensors["moment"]
        if weighted_CLD.ndim != 3 or weighted_CLD.shape[:2] != (len(counts), 2) or weighted_CLD.shape[2] == 0:
            raise UnsafeStatistics(f"weighted means of shape {tuple(weighted_CLD.shape)} for {len(counts)} classes")
        num_features = weighted_CLD.shape[2]
        if moment_LT.shape != (2, num_features * (num_features + 1) // 2):
            raise UnsafeStatistics(f"moment of shape {tuple(moment_LT.shape)} for {num_features} features")
        for limbs in (weighted_CLD.movedim(1, 0), moment_LT):
            for limb, largest in zip(limbs, (LARGEST * 2**10, 2**49), strict=True):
                # Not by abs(): the absolute value of the least int64 is negative.
                if limb.max() > len(members) * largest or limb.min() < -len(members) * largest:
                    raise UnsafeStatistics("a number is beyond what its members add up to")

        total = ExactSum(num_features, fingerprint=fingerprint)
        total.num_parts = len(members)
        total.counts = counts
        total.weighted_LD = dict(zip(sorted(counts), weighted_CLD, strict=True))
        total.moment_LT = moment_LT
        stats = total.statistics()
        spread = sum(count * stats.means[name].square().sum().item() for name, count in counts.items())
        require_positive(stats.scatter, slack=_SLACK * (stats.scatter.trace().item() + spread))
        return cls(members, total)


def joined_groups(first: GroupSum | None, second: GroupSum | None) -> GroupSum | None:
    """One group of two, in which nothing counts twice; the same whichever comes first.

    Returns: Both together if they have no key in common, and otherwise the one of more members, on a tie the one
        whose names sort last: an overlap cannot be taken out of either.

    Raises:
        UnsafeStatistics: If there are too many members for one sum.
    """
    if first is None or second is None:
        return first or second
    if not first.members.keys() & second.members.keys():
        total = first.total.copy()
        total.add_sum(second.total)
        return GroupSum({**first.members, **second.members}, total)
    return max((first, second), key=lambda group: (len(group.members), sorted(map(astuple, group.members.values()))))


def _checked_members(entries: object) -> dict[ContributionKey, Member]:
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_PARTS:
        raise UnsafeStatistics("members are not a list of contributions")
    members: dict[ContributionKey, Member] = {}
    for entry in entries:
        match entry:
            case [peer, task, version, digest, issued_at]:
                member = Member(peer=peer, task=task, version=version, digest=digest, issued_at=issued_at)
            case _:
                raise UnsafeStatistics("a member is not a contribution's name")
        if member.key in members:
            raise UnsafeStatistics(f"member {member.peer!r}, {member.task!r} is there twice")
        members[member.key] = member
    return members
