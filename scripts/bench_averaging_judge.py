"""What became of a round that a fault has struck: whether anybody holds a wrong mean, or has lost what it learned.

Legend: P parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCE", "Commit", "Witness", "faults_found", "is_close"]

Vector = npt.NDArray[np.float32]

TOLERANCE = 1e-6
"""Relative to the largest parameter: a mean is rounded to float32 once, and once more when it is added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """What a member has committed in a round."""

    attempt: int
    members: frozenset[str]
    mean: Vector
    """That the exchange came to at this member, float32 ``(P,)``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Witness:
    """One member's part in a round.

    Attributes:
        brought: Its parameters at the beginning of each attempt, in their order, float32 ``(P,)``.
        learned: What was learned here after the last of these, float32 ``(P,)``; None if nothing was.
        commit: What it has committed; None if nothing.
        held: Its parameters afterwards, float32 ``(P,)``.
    """

    brought: Sequence[Vector]
    learned: Vector | None
    commit: Commit | None
    held: Vector


def faults_found(witnesses: Mapping[str, Witness]) -> list[str]:
    """Everything that should not be, a line each; none if all is well.

    Whoever committed must hold the mean of what the members of that attempt had brought, the same bits as the others
    of the attempt, and on top of it what it learned meanwhile. Whoever did not must hold, to the bit, what it had.

    Args:
        witnesses: By name, all whose replica is there to be looked at; of whom a commit says that it was a member.
    """
    found = []
    means: dict[int, Vector] = {}
    for name, witness in witnesses.items():
        commit = witness.commit
        if commit is None:
            found += _unchanged(name, witness)
            continue
        if name not in commit.members:
            found.append(f"{name} committed a mean that it is no part of")
        first = means.setdefault(commit.attempt, commit.mean)
        if not np.array_equal(first, commit.mean):
            found.append(f"{name} committed another mean than others did in attempt {commit.attempt}")
        found += _is_mean_of(name, commit, witnesses)
        if not is_close(witness.held, _plus(commit.mean, witness.learned)):
            found.append(f"{name} does not hold the mean it committed and what it learned since")
    return found


def _unchanged(name: str, witness: Witness) -> list[str]:
    if not witness.brought:
        return []
    before = _plus(witness.brought[-1], witness.learned)
    same = np.array_equal(witness.held, before) if witness.learned is None else is_close(witness.held, before)
    return [] if same else [f"{name} committed nothing and holds something else than it had"]


def _is_mean_of(name: str, commit: Commit, witnesses: Mapping[str, Witness]) -> list[str]:
    lost = [
        member
        for member in commit.members
        if member not in witnesses or len(witnesses[member].brought) <= commit.attempt
    ]
    if lost:
        return [f"{name} committed a mean with {', '.join(sorted(lost))}, who brought nothing"]
    brought = [witnesses[member].brought[commit.attempt] for member in commit.members]
    mean = np.mean(brought, axis=0, dtype=np.float64)
    return [] if is_close(commit.mean, mean) else [f"{name} committed something else than its group's mean"]


def _plus(vector: Vector, learned: Vector | None) -> Vector:
    return vector if learned is None else vector + learned


def is_close(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> bool:
    """Whether the two are the same but for what rounding does."""
    scale = max(1.0, float(np.abs(other).max()))
    return bool(np.abs(one.astype(np.float64) - other).max() <= TOLERANCE * scale)
