"""Who can average together: what follows from the members' proposals, the same at whoever has heard them all."""

from collections.abc import Collection, Mapping
from functools import reduce

from protocol.messages import RoundProposal
from protocol.rounds.actions import AbandonReason
from protocol.wiretypes import PeerId

__all__ = ["are_one", "unfit_members"]


def are_one(proposals: Collection[RoundProposal]) -> bool:
    """Whether an exchange would change nothing: no replica did, and all hold one mean as far as can be told.

    Replicas that mix along a grid hold means of different members until they have mixed along all axes; only where
    all of them are here do different means say that some have missed a round, or have been apart.
    """
    if any(proposal.dirty for proposal in proposals):
        return False
    means = {proposal.reference for proposal in proposals}
    return (len(means) == 1 and None not in means) or not all(proposal.whole for proposal in proposals)


def unfit_members(
    me: PeerId, proposals: Mapping[PeerId, RoundProposal], *, rounds_behind: int
) -> tuple[AbandonReason | None, frozenset[PeerId]]:
    """The members that this one cannot average with, and the first reason; no reason if all of them fit.

    Members that see different groups are left with those that are in everybody's: it is worked out from the
    proposals of those that count each other in, so that whoever remains comes to the same. That can be all of this
    one's members, where only others see one more.

    Args:
        me: Whose view it is; it may itself be among those that do not fit.
        proposals: Of members, the own one among them; who has not proposed is not judged.
        rounds_behind: How many rounds a replica may have missed.
    """
    mine = proposals[me]
    # Who claims to hold a round that is still to come must not make all others stale.
    bases = {peer: proposal.base for peer, proposal in proposals.items() if proposal.base < mine.round.number}
    oldest = max(bases.values(), default=0) - rounds_behind
    views = {peer: set(proposal.members) for peer, proposal in proposals.items() if me in proposal.members}
    shared = reduce(set.intersection, views.values())
    strangers = {peer for peer in proposals if peer not in views}
    unfit = {
        AbandonReason.NOT_READY: {peer for peer, proposal in proposals.items() if not proposal.ready},
        AbandonReason.DIFFERING_VIEWS: (set(mine.members) - shared) | strangers,
        AbandonReason.DIFFERING_SETTINGS: {
            peer for peer, proposal in proposals.items() if proposal.settings != mine.settings
        },
        AbandonReason.DIFFERING_ORIGINS: {
            peer for peer, proposal in proposals.items() if proposal.origin != mine.origin
        },
        AbandonReason.STALE: {peer for peer in proposals if peer not in bases or bases[peer] < oldest},
    }
    reason = next((reason for reason, peers in unfit.items() if peers), None)
    if reason is None and any(proposal.members != mine.members for proposal in proposals.values()):
        reason = AbandonReason.DIFFERING_VIEWS
    return reason, frozenset().union(*unfit.values())
