"""What one member does at each stage of a round, whatever comes; whole groups are in the network tests."""

import pytest

from protocol.identifiers import digest_of, peer_id_of
from protocol.membership import group_digest
from protocol.messages import RoundId
from protocol.rounds import (
    Abandon,
    AbandonReason,
    AskOutcome,
    AttestationDelivered,
    AttestationReceived,
    Commit,
    DeadlinePassed,
    ExchangeFinished,
    OutcomeAsked,
    OutcomeLearned,
    OutcomeUnanswered,
    Phase,
    ProposalReceived,
    Round,
    RunAllReduce,
    SendAttestation,
    SendProposal,
)

ROUND = RoundId(digest_of(b"expert"), 7, 0)
ME, B, C = (peer_id_of(name) for name in (b"me", b"b", b"c"))
STRANGER = peer_id_of(b"stranger")
GROUP = group_digest(ROUND.expert, ROUND.number, ROUND.attempt, (ME, B, C))
DEADLINE_S = 30.0


def proposal(peer, *, group=GROUP, ready=True, dirty=True) -> ProposalReceived:
    return ProposalReceived(peer, group, ready, dirty)


def started(*, ready=True, dirty=True) -> Round:
    round_ = Round(ROUND, ME, (ME, B, C), DEADLINE_S)
    assert round_.start(0.0, ready=ready, dirty=dirty) == [SendProposal(GROUP, ready, dirty)]
    return round_


def feed(round_: Round, *events, now_s=1.0):
    return [action for event in events for action in round_.handle(event, now_s)]


def reducing() -> Round:
    round_ = started()
    assert feed(round_, proposal(B), proposal(C)) == [RunAllReduce()]
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
    round_ = Round(ROUND, ME, (ME, B, C), DEADLINE_S)
    assert feed(round_, proposal(B), proposal(C), AttestationReceived(B, True), AttestationReceived(C, True)) == []
    assert round_.start(0.0) == [SendProposal(GROUP, True, True), RunAllReduce()]
    assert feed(round_, ExchangeFinished(full=True)) == [SendAttestation(full=True)]
    assert feed(round_, AttestationDelivered(B), AttestationDelivered(C)) == [Commit()]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([proposal(B, group=digest_of(b"another group"))], AbandonReason.DIFFERING_VIEWS),
        ([proposal(B), proposal(C, ready=False)], AbandonReason.NOT_READY),
        ([proposal(B, dirty=False), proposal(C, dirty=False)], AbandonReason.NOTHING_TO_DO),
    ],
)
def test_members_that_do_not_agree_on_the_round_exchange_nothing(events, reason):
    round_ = started(dirty=False)
    assert feed(round_, *events) == [Abandon(reason)]
    assert round_.outcome == "aborted"


def test_one_member_that_trained_is_enough():
    round_ = started(dirty=False)
    assert feed(round_, proposal(B, dirty=False), proposal(C, dirty=True)) == [RunAllReduce()]


def test_a_member_that_is_not_ready_says_so_before_it_abandons():
    round_ = Round(ROUND, ME, (ME, B, C), DEADLINE_S)
    assert round_.start(0.0, ready=False, dirty=True) == [
        SendProposal(GROUP, ready=False, dirty=True),
        Abandon(AbandonReason.NOT_READY),
    ]


def test_alone_there_is_nothing_to_average():
    assert Round(ROUND, ME, (ME,), DEADLINE_S).start(0.0)[-1] == Abandon(AbandonReason.NOTHING_TO_DO)


def test_a_silent_partner_is_named_when_proposals_are_due():
    round_ = started()
    assert feed(round_, proposal(B)) == []
    assert feed(round_, DeadlinePassed(), now_s=30.0) == [Abandon(AbandonReason.PARTNER_SILENT, frozenset({C}))]


def test_a_start_after_the_deadline_takes_no_part():
    round_ = Round(ROUND, ME, (ME, B, C), DEADLINE_S)
    assert feed(round_, proposal(B), proposal(C)) == []
    assert round_.start(DEADLINE_S) == [Abandon(AbandonReason.NOT_READY)]


def test_a_deadline_that_comes_too_early_has_no_effect():
    assert feed(started(), DeadlinePassed(), now_s=29.9) == []
    assert feed(asking(), DeadlinePassed(), now_s=31.1) == []


def test_an_exchange_that_never_finishes_is_incomplete():
    assert feed(reducing(), DeadlinePassed(), now_s=31.0) == [Abandon(AbandonReason.INCOMPLETE)]


def test_an_incomplete_exchange_is_attested_as_such_and_abandoned():
    assert feed(reducing(), ExchangeFinished(full=False)) == [
        SendAttestation(full=False),
        Abandon(AbandonReason.INCOMPLETE),
    ]


@pytest.mark.parametrize("stage", [started, reducing, attesting, asking])
def test_one_incomplete_exchange_elsewhere_ends_the_round_at_any_stage(stage):
    assert feed(stage(), AttestationReceived(B, False)) == [Abandon(AbandonReason.INCOMPLETE)]


def test_one_that_committed_is_followed():
    round_ = asking()
    assert feed(round_, OutcomeUnanswered(B), OutcomeLearned(C, "committed")) == [Commit()]


def test_a_committed_elsewhere_means_nothing_to_one_that_did_not_attest():
    assert feed(started(), OutcomeLearned(B, "committed")) == []
    assert feed(reducing(), OutcomeLearned(B, "committed")) == []


def test_without_a_commit_among_those_that_answer_the_round_is_abandoned_and_the_silent_are_named():
    round_ = asking()
    assert feed(round_, OutcomeLearned(B, "pending")) == []
    assert feed(round_, OutcomeUnanswered(C)) == [Abandon(AbandonReason.PARTNER_SILENT, frozenset({C}))]


def test_answers_are_awaited_for_the_grace_only():
    round_ = asking()
    assert round_.deadline_s == pytest.approx(33.0)
    assert feed(round_, OutcomeLearned(B, "unknown")) == []
    assert feed(round_, DeadlinePassed(), now_s=33.0) == [Abandon(AbandonReason.PARTNER_SILENT, frozenset({C}))]


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
        proposal(STRANGER, group=digest_of(b"?")),
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
