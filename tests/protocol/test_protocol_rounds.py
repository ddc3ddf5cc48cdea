"""What one member does at each stage of a round, whatever comes; whole groups are in the network tests."""

import pytest

from protocol.identifiers import digest_of, peer_id_of
from protocol.limits import MAX_ROUNDS_BEHIND
from protocol.messages import RoundId, RoundProposal
from protocol.rounds import (
    Abandon,
    AbandonReason,
    AskOutcome,
    AttestationDelivered,
    AttestationReceived,
    Commit,
    DeadlinePassed,
    Exchange,
    ExchangeFinished,
    OutcomeAsked,
    OutcomeLearned,
    OutcomeUnanswered,
    Phase,
    ProposalReceived,
    Round,
    SendAttestation,
    SendProposal,
)

ROUND = RoundId(digest_of(b"expert"), 70, 0)
ME, B, C = (peer_id_of(name) for name in (b"me", b"b", b"c"))
STRANGER = peer_id_of(b"stranger")
DEADLINE_S = 30.0
GRACE_S = 2.0


def view(
    *, members=(ME, B, C), whole=True, ready=True, dirty=True, mean=b"mean", base=60, origin=b"initial", settings="none"
) -> RoundProposal:
    return RoundProposal(
        round=ROUND,
        members=tuple(sorted(members)),
        whole=whole,
        ready=ready,
        dirty=dirty,
        base=base,
        origin=digest_of(origin),
        settings=settings,
        reference=None if mean is None else digest_of(mean),
        weight=1.0,
    )


def proposal(peer, **seen) -> ProposalReceived:
    return ProposalReceived(peer, view(**seen))


def exchange(**mine) -> Exchange:
    return Exchange((view(**mine),) * 3)


def started(**mine) -> Round:
    round_ = Round(ME, view(**mine), DEADLINE_S, GRACE_S)
    assert round_.start(0.0) == [SendProposal()]
    return round_


def feed(round_: Round, *events, now_s=1.0):
    return [action for event in events for action in round_.handle(event, now_s)]


def reducing() -> Round:
    round_ = started()
    assert feed(round_, proposal(B), proposal(C)) == [exchange()]
    return round_


def attesting() -> Round:
    round_ = reducing()
    assert feed(round_, ExchangeFinished(full=True)) == [SendAttestation(full=True)]
    return round_


def asking() -> Round:
    round_ = attesting()
    assert feed(round_, DeadlinePassed(), now_s=31.0) == [AskOutcome(tuple(sorted([B, C])))]
    return round_


def test_a_round_without_trouble_commits_once_everybody_heard_everybody():
    round_ = attesting()
    assert feed(round_, AttestationReceived(B, True), AttestationReceived(C, True), AttestationDelivered(B)) == []
    assert round_.outcome == "pending"
    assert feed(round_, AttestationDelivered(C)) == [Commit()]
    assert (round_.outcome, round_.ended, round_.phase) == ("committed", True, Phase.COMMITTED)


def test_events_that_come_early_count_later():
    round_ = Round(ME, view(), DEADLINE_S, GRACE_S)
    assert feed(round_, proposal(B), proposal(C), AttestationReceived(B, True), AttestationReceived(C, True)) == []
    assert round_.start(0.0) == [SendProposal(), exchange()]
    assert feed(round_, ExchangeFinished(full=True)) == [SendAttestation(full=True)]
    assert feed(round_, AttestationDelivered(B), AttestationDelivered(C)) == [Commit()]


@pytest.mark.parametrize(
    ("others", "reason", "left_out"),
    [
        ([proposal(B), proposal(C, ready=False)], AbandonReason.NOT_READY, {C}),
        ([proposal(B), proposal(C, settings="int8")], AbandonReason.DIFFERING_SETTINGS, {C}),
        ([proposal(B), proposal(C, origin=b"other")], AbandonReason.DIFFERING_ORIGINS, {C}),
        ([proposal(B), proposal(C, base=59 - MAX_ROUNDS_BEHIND)], AbandonReason.STALE, {C}),
        ([proposal(B), proposal(C, base=61 + MAX_ROUNDS_BEHIND)], AbandonReason.STALE, {ME, B}),
        ([proposal(B), proposal(C, base=70)], AbandonReason.STALE, {C}),  # that of this very round
        ([proposal(B), proposal(C, base=2**53 - 1)], AbandonReason.STALE, {C}),
        ([proposal(B, ready=False), proposal(C, origin=b"other")], AbandonReason.NOT_READY, {B, C}),
        ([proposal(B, dirty=False), proposal(C, dirty=False)], AbandonReason.NOTHING_TO_DO, set()),
    ],
)
def test_members_that_do_not_fit_are_left_out_of_another_attempt(others, reason, left_out):
    round_ = started(dirty=False)
    assert feed(round_, *others) == [Abandon(reason, frozenset(left_out))]
    assert round_.outcome == "aborted"


def test_a_replica_may_have_missed_some_rounds():
    assert feed(started(), proposal(B), proposal(C, base=60 - MAX_ROUNDS_BEHIND))[0].proposals[0].ready


@pytest.mark.parametrize(
    ("mine", "seen_by_b", "seen_by_c", "left"),
    [
        ((ME, B, C), (B, C), (ME, B, C), {ME, C}),  # B has not heard of me: C and I remain
        ((ME, B, C), (ME, B), (ME, B, C), {ME, B}),  # B has not heard of C
        ((ME, B, C), (ME, B, C, STRANGER), (ME, B, C), {ME, B, C}),  # only B has heard of the stranger
        ((ME, B, C), (B, C), (B, C), {ME}),
    ],
)
def test_of_differing_views_those_that_are_in_all_of_them_remain(mine, seen_by_b, seen_by_c, left):
    round_ = started(members=mine)
    others = proposal(B, members=seen_by_b), proposal(C, members=seen_by_c)
    assert feed(round_, *others) == [Abandon(AbandonReason.DIFFERING_VIEWS, frozenset(mine) - left)]


def test_one_member_that_trained_is_enough():
    round_ = started(dirty=False)
    (action,) = feed(round_, proposal(B, dirty=False), proposal(C, dirty=True))
    assert isinstance(action, Exchange)


@pytest.mark.parametrize("mean", [b"another mean", None])
def test_all_replicas_go_on_while_they_hold_different_means_and_parts_of_them_need_not(mean):
    (action,) = feed(started(dirty=False), proposal(B, dirty=False), proposal(C, dirty=False, mean=mean))
    assert isinstance(action, Exchange)
    of_a_grid = [proposal(B, dirty=False, whole=False), proposal(C, dirty=False, whole=False, mean=mean)]
    assert feed(started(dirty=False, whole=False), *of_a_grid) == [Abandon(AbandonReason.NOTHING_TO_DO)]


def test_a_member_that_is_not_ready_says_so_before_it_abandons():
    round_ = Round(ME, view(ready=False), DEADLINE_S, GRACE_S)
    assert round_.start(0.0) == [SendProposal(), Abandon(AbandonReason.NOT_READY, frozenset({ME}))]


def test_alone_there_is_nothing_to_average():
    assert Round(ME, view(members=(ME,)), DEADLINE_S, GRACE_S).start(0.0)[-1] == Abandon(AbandonReason.NOTHING_TO_DO)


def test_a_silent_partner_is_named_when_proposals_are_due():
    round_ = started()
    assert feed(round_, proposal(B)) == []
    assert feed(round_, DeadlinePassed(), now_s=30.0) == [
        SendAttestation(full=False, missing=frozenset({C})),
        Abandon(AbandonReason.PARTNER_SILENT, frozenset({C})),
    ]


def test_a_start_after_the_deadline_takes_no_part():
    round_ = Round(ME, view(), DEADLINE_S, GRACE_S)
    assert feed(round_, proposal(B), proposal(C)) == []
    assert round_.start(DEADLINE_S) == [Abandon(AbandonReason.NOT_READY)]


def test_a_deadline_that_comes_too_early_has_no_effect():
    assert feed(started(), DeadlinePassed(), now_s=29.9) == []
    assert feed(asking(), DeadlinePassed(), now_s=31.1) == []


def test_an_exchange_that_never_finishes_is_incomplete():
    assert feed(reducing(), DeadlinePassed(), now_s=31.0) == [Abandon(AbandonReason.INCOMPLETE)]


def test_an_incomplete_exchange_is_attested_with_whom_it_lacks_and_made_again_without():
    assert feed(reducing(), ExchangeFinished(full=False, missing=frozenset({C}))) == [
        SendAttestation(full=False, missing=frozenset({C})),
        Abandon(AbandonReason.INCOMPLETE, frozenset({C})),
    ]


@pytest.mark.parametrize("stage", [started, reducing, attesting, asking])
def test_one_incomplete_exchange_elsewhere_ends_the_round_at_any_stage(stage):
    missing = frozenset({C, STRANGER})
    reason = AbandonReason.PARTNER_SILENT if stage is started else AbandonReason.INCOMPLETE
    assert feed(stage(), AttestationReceived(B, False, missing)) == [Abandon(reason, frozenset({C}))]


def test_a_proposal_is_awaited_for_less_long_than_parts_are():
    lacking, reducing_ = (Round(ME, view(), DEADLINE_S, GRACE_S, proposals_by_s=10.0) for _ in range(2))
    lacking.start(0.0)
    feed(lacking, proposal(B))
    assert feed(lacking, DeadlinePassed(), now_s=10.0)[0] == SendAttestation(full=False, missing=frozenset({C}))
    reducing_.start(0.0)
    feed(reducing_, proposal(B), proposal(C))
    assert feed(reducing_, DeadlinePassed(), now_s=29.0) == []
    assert feed(reducing_, DeadlinePassed(), now_s=30.0) == [Abandon(AbandonReason.INCOMPLETE)]


def test_who_cannot_tell_through_whom_an_exchange_failed_waits_for_the_word_of_one_that_can():
    round_ = reducing()
    assert feed(round_, ExchangeFinished(full=False)) == []
    assert feed(round_, AttestationReceived(B, False, frozenset({C}))) == [
        Abandon(AbandonReason.INCOMPLETE, frozenset({C}))
    ]


def test_one_that_committed_is_followed():
    round_ = asking()
    assert feed(round_, OutcomeUnanswered(B), OutcomeLearned(C, "committed")) == [Commit()]


def test_a_committed_elsewhere_means_nothing_to_one_that_did_not_attest():
    assert feed(started(), OutcomeLearned(B, "committed")) == []
    assert feed(reducing(), OutcomeLearned(B, "committed")) == []


def test_without_a_commit_among_those_that_answer_the_round_is_abandoned_and_the_silent_are_named():
    round_ = asking()
    assert feed(round_, OutcomeLearned(B, "pending")) == []
    assert feed(round_, OutcomeUnanswered(C)) == [Abandon(AbandonReason.PARTNER_SILENT, frozenset({C}), doubtful=True)]


def test_answers_are_awaited_for_the_grace_only():
    round_ = asking()
    assert round_.deadline_s == pytest.approx(33.0)
    assert feed(round_, OutcomeLearned(B, "unknown")) == []
    silent = Abandon(AbandonReason.PARTNER_SILENT, frozenset({C}), doubtful=True)
    assert feed(round_, DeadlinePassed(), now_s=33.0) == [silent]


def test_partners_that_all_answer_are_not_called_silent():
    assert feed(asking(), OutcomeLearned(B, "pending"), OutcomeLearned(C, "aborted")) == [
        Abandon(AbandonReason.PARTNER_ABANDONED)
    ]


def test_one_that_asks_does_not_commit_by_itself_any_more():
    round_ = asking()
    assert not round_.acknowledges
    assert feed(round_, *(event(peer) for peer in (B, C) for event in (AttestationDelivered,))) == []
    assert feed(round_, AttestationReceived(B, True), AttestationReceived(C, True)) == []
    assert round_.outcome == "pending"


def test_one_that_is_asked_asks_too_and_no_longer_commits_by_itself():
    round_ = attesting()
    assert feed(round_, OutcomeAsked(B)) == [AskOutcome(tuple(sorted([B, C])))]
    assert round_.outcome == "pending"
    events = [
        AttestationReceived(B, True),
        AttestationReceived(C, True),
        AttestationDelivered(B),
        AttestationDelivered(C),
    ]
    assert feed(round_, *events, OutcomeAsked(C)) == []


@pytest.mark.parametrize("stage", [started, reducing])
def test_one_that_is_asked_before_it_attested_abandons(stage):
    round_ = stage()
    assert feed(round_, OutcomeAsked(B)) == [Abandon(AbandonReason.PARTNER_ABANDONED)]
    assert round_.outcome == "aborted"


def test_an_attestation_answered_with_aborted_makes_a_member_ask_the_rest():
    round_ = attesting()
    assert feed(round_, OutcomeLearned(B, "aborted")) == [AskOutcome((C,))]
    assert feed(round_, OutcomeLearned(C, "committed")) == [Commit()]


def test_strangers_do_not_count():
    round_ = attesting()
    events = [
        proposal(STRANGER, ready=False),
        AttestationReceived(STRANGER, False),
        OutcomeAsked(STRANGER),
        OutcomeLearned(STRANGER, "committed"),
        OutcomeLearned(ME, "committed"),
    ]
    assert feed(round_, *events) == []
    assert round_.phase is Phase.ATTESTING


def test_what_was_abandoned_stays_abandoned():
    round_ = asking()
    feed(round_, OutcomeUnanswered(B), OutcomeUnanswered(C))
    assert feed(round_, OutcomeLearned(B, "committed"), DeadlinePassed(), now_s=99.0) == []
    assert round_.outcome == "aborted"
    assert round_.start(99.0) == []
