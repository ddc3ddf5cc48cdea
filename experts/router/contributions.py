"""The router's statistics as a state-based CRDT: contributions by (peer, task), each at one version, summed exactly.

Per key the state is a register that only rises: of two contributions the one of higher (version, digest) stays, and a
drop raises the register to "nothing, up to this version". `merge` joins registers, so it is commutative, associative
and idempotent (Shapiro et al. 2011, "Conflict-free replicated data types", SSS 2011, sec. 2), and the sum, which is
exact, has the same bits wherever the same contributions are held.

Bytes beyond ``max_bytes`` are given up, oldest contributions first. What is given up is *folded*: still in the sum,
named in the version vector, but no longer held. Folded or not,

- the sum is that of exactly the contributions `counted`, none of them twice, to the last bit;
- what was dropped never counts, and does not come back;
- what has to go for these two is returned by name, to be added again from whoever holds its bytes.

What folding costs is how a contribution can leave. A folded one leaves by itself only after `reissue`, with its own
bytes in hand; until then a higher version of it is not taken, and dropping it gives up all that was folded. When
replicas that have folded merge, what either holds singly is taken out of the other's group, and a group with something
dropped in it is given up. Then groups without a common key add up, and of two others the one of more members stays.
That is still commutative, and merging the same again changes nothing, but it is associative only where groups are
disjoint. So contributions are what peers should pass on, and a group only what nobody holds any more.

What this class does not know: signatures, clocks, who may contribute. It takes bytes and gives statistics.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from experts.errors import UnsafeStatistics
from experts.router.exact import ExactSum
from experts.router.groups import ContributionKey, GroupSum, Member, joined_groups
from experts.router.statistics import ClassStatistics

__all__ = ["Contributions"]


@dataclass(frozen=True, slots=True)
class _Held:
    """A contribution with its bytes."""

    member: Member
    data: bytes


class Contributions:
    """Holds contributions, their exact sum, and no more bytes than allowed.

    Args:
        feature_dim: D of all statistics here.
        fingerprint: Of all statistics here; None for those that carry none.
        max_bytes: What sum, contributions and their names may take together, as `num_bytes` counts them; None for
            no bound. The sum and the names of what is in it stay whatever the bound.
        decode: Makes statistics of a contribution's bytes, always the same of the same bytes, and raises
            UnsafeStatistics for bytes that are none; with the 8-bit wire form a `decode8` with its reference.
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        fingerprint: str | None = None,
        max_bytes: int | None = None,
        decode: Callable[[bytes], ClassStatistics] = ClassStatistics.from_bytes,
    ) -> None:
        self._max_bytes = max_bytes
        self._decode = decode
        self._total = ExactSum(feature_dim, fingerprint=fingerprint)
        self._held: dict[ContributionKey, _Held] = {}
        self._folded: dict[ContributionKey, Member] = {}
        self._dropped: dict[ContributionKey, int] = {}

    @property
    def counted(self) -> dict[ContributionKey, Member]:
        """What is in the sum, by key in sorted order."""
        counted = {key: held.member for key, held in self._held.items()} | self._folded
        return {key: counted[key] for key in sorted(counted)}

    @property
    def folded(self) -> dict[ContributionKey, Member]:
        """What is in the sum and no longer held: the version vector of the group sum."""
        return dict(self._folded)

    @property
    def dropped(self) -> dict[ContributionKey, int]:
        """The version up to which a key was dropped."""
        return dict(self._dropped)

    @property
    def num_bytes(self) -> int:
        """Bytes held: the sum, contributions, and the names of both and of what was dropped."""
        names = sum(member.num_bytes for member in self.counted.values())
        dropped = sum(len(peer.encode()) + len(task.encode()) + 8 for peer, task in self._dropped)
        return self._total.num_bytes + sum(len(held.data) for held in self._held.values()) + names + dropped

    def add(self, key: ContributionKey, version: int, data: bytes, *, issued_at: float = 0.0) -> bool:
        """Takes a contribution in place of any lower version that is held.

        Args:
            key: (peer, task), neither empty.
            version: At least 1.
            data: The statistics.
            issued_at: Unix seconds; what is older folds first, ties in the order of keys.

        Returns: Whether it was taken. Not if it was dropped, or what counts of this key is of at least its rank, or
            is folded: then only after a `reissue` of that.

        Raises:
            FingerprintMismatch: If the statistics are over other features.
            UnsafeStatistics: If there is no such key or version, the bytes are no statistics, of another dimension,
                or beyond what an exact sum takes. Nothing has changed then.
        """
        peer, task = key
        digest = sha256(data).hexdigest()
        member = Member(peer=peer, task=task, version=version, digest=digest, issued_at=float(issued_at))
        held = self._held.get(key)
        if key in self._folded or self._is_dropped(member) or (held and member.rank <= held.member.rank):
            self._keep_bound()  # what was reissued waited for this call, whatever came of it
            return False
        stats = self._decode(data)
        if held is None:
            self._total.add(stats)
        else:
            self._total.replace(self._decode(held.data), stats)
        self._held[key] = _Held(member, data)
        self._keep_bound()
        return True

    def reissue(self, key: ContributionKey, data: bytes) -> None:
        """Takes the bytes of a folded contribution again: it is held as before, and can be dropped or replaced.

        It stays held, within the bound or not, until the next `add` or merge, whether that takes anything or not.

        Raises:
            UnsafeStatistics: If nothing of this key is folded, or it had other bytes.
        """
        member = self._folded.get(key)
        if member is None or sha256(data).hexdigest() != member.digest:
            raise UnsafeStatistics(f"not the bytes of a folded contribution of {key[0]!r} to {key[1]!r}")
        self._held[key] = _Held(self._folded.pop(key), data)

    def drop_task(self, task: str) -> tuple[Member, ...]:
        """Drops what all peers contributed to a task; see `drop_peer`."""
        return self._drop({key for key in self.counted if key[1] == task})

    def drop_peer(self, peer: str) -> tuple[Member, ...]:
        """Drops what is known of a peer's contributions: the sum is, bit by bit, one that never had them.

        Their versions are not taken again, here or after a merge; a higher one is: to refuse a peer altogether is
        for whoever calls `add`.

        Returns: What else had to go: the rest of the group, if one of them was folded and not reissued before.
        """
        return self._drop({key for key in self.counted if key[0] == peer})

    def merge(self, other: "Contributions") -> tuple[Member, ...]:
        """Joins another replica's state into this one, which keeps its own budget. Reads all that either holds.

        Returns: What one of the two counted and the joined state cannot, because it, or something that it would
            count twice, is folded. Empty if neither has folded anything.

        Raises:
            FingerprintMismatch: If the other is over other features.
            UnsafeStatistics: If it is of another dimension, or there are too many contributions for one sum. Nothing
                has changed then.
        """
        self._total.require_fit(other._total)
        return self._join(other._held, other._dropped, other.group())

    def merge_group(self, group: GroupSum) -> tuple[Member, ...]:
        """Joins a group sum by itself; result and errors as for `merge`."""
        self._total.require_fit(group.total)
        return self._join({}, {}, group)

    def group(self) -> GroupSum | None:
        """The group sum of all that was folded; None if nothing was. Reads every contribution held."""
        if not self._folded:
            return None
        total = self._total.copy()
        for held in self._held.values():
            total.subtract(self._decode(held.data))
        return GroupSum(dict(self._folded), total)

    def sum(self) -> ClassStatistics:
        """The statistics of all that is `counted`, in float64, at a cost that does not depend on how many.

        Raises:
            UnsafeStatistics: If nothing is.
        """
        return self._total.statistics()

    def _join(
        self, held: Mapping[ContributionKey, _Held], dropped: Mapping[ContributionKey, int], group: GroupSum | None
    ) -> tuple[Member, ...]:
        registers = self._dropped | {key: max(version, self._dropped.get(key, 0)) for key, version in dropped.items()}
        singles = [*self._held.values(), *held.values()]
        # The one of greatest rank last. Times are compared too: a copy may come with another.
        singles.sort(key=lambda single: (single.member.rank, single.member.issued_at))
        members = [*self._folded.values(), *(group.members.values() if group else ()), *(one.member for one in singles)]
        own, others = (self._remainder(one, singles, registers) for one in (self.group(), group))
        self._rebuild({single.member.key: single for single in singles}, joined_groups(own, others), registers)

        wanted = {member.key: member for member in sorted(members, key=lambda member: member.rank)}
        counted = self.counted
        self._keep_bound()
        return tuple(
            member
            for key, member in sorted(wanted.items())
            if not self._is_dropped(member) and (key not in counted or counted[key].rank != member.rank)
        )

    def _remainder(
        self, group: GroupSum | None, singles: Iterable[_Held], dropped: Mapping[ContributionKey, int]
    ) -> GroupSum | None:
        """What a group is worth beside contributions at hand: without them, and nothing if something was dropped."""
        if group is None:
            return None
        members, total = dict(group.members), group.total.copy()
        for single in singles:
            member = members.get(single.member.key)
            if member is not None and member.rank == single.member.rank:
                total.subtract(self._decode(single.data))
                del members[member.key]
        if not members or any(member.version <= dropped.get(key, 0) for key, member in members.items()):
            return None
        return GroupSum(members, total)

    def _rebuild(
        self, held: Mapping[ContributionKey, _Held], group: GroupSum | None, dropped: Mapping[ContributionKey, int]
    ) -> None:
        """Makes the state anew of a group and of what neither it nor a drop rules out."""
        total = ExactSum(self._total.feature_dim, fingerprint=self._total.fingerprint)
        folded = {} if group is None else dict(group.members)
        if group is not None:
            total.add_sum(group.total)
        stays = {
            key: single
            for key, single in held.items()
            if key not in folded and single.member.version > dropped.get(key, 0)
        }
        for single in stays.values():
            total.add(self._decode(single.data))
        self._total, self._held, self._folded, self._dropped = total, stays, folded, dict(dropped)

    def _drop(self, keys: set[ContributionKey]) -> tuple[Member, ...]:
        counted = self.counted
        dropped = self._dropped | {key: counted[key].version for key in keys}
        if keys & self._folded.keys():
            gone = tuple(counted[key] for key in sorted(self._folded.keys() - keys))
            self._rebuild(self._held, None, dropped)
            return gone
        for key in keys:
            self._total.subtract(self._decode(self._held.pop(key).data))
        self._dropped = dropped
        return ()

    def _is_dropped(self, member: Member) -> bool:
        return member.version <= self._dropped.get(member.key, 0)

    def _keep_bound(self) -> None:
        excess = 0 if self._max_bytes is None else self.num_bytes - self._max_bytes
        for key in sorted(self._held, key=lambda key: (self._held[key].member.issued_at, key)):
            if excess <= 0:
                return
            held = self._held.pop(key)
            self._folded[key] = held.member
            excess -= len(held.data)
