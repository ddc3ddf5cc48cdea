"""One attempt of one averaging round, as one member sees it: events in, actions out, no I/O.

A plain all-reduce may fail for some members and report success to others (measured on hivemind's), after
which replicas differ for good. So members agree first and attest afterwards::

    propose  ->   exchange   ->  attest  ->  commit                     everybody heard everybody
       |             |             |
       |             |             +->  ask the others  ->  commit      one of them had committed
       |             |                                  ->  abandon     none of those that answered had
       +-------------+-> abandon                                        without us nobody can have committed

A member commits by itself only when every member attested a full exchange to it *and* its own attestation was
acknowledged by every member. Three promises make that safe among members that can reach one another:

1. Abandoned is for ever: the outcome "aborted" never becomes "committed".
2. A member that has asked the others, or was asked by one, no longer commits by itself; it commits only on
   hearing that another has. Who answers "pending" can therefore be counted as not committed.
3. Such a member no longer acknowledges attestations either (`Round.acknowledges`), and so stops the others.

What cannot be had is agreement with a member that committed and then fell silent before anybody could ask:
the others abandon, and the lost member is stale when it returns.

What the driver does:

- It keeps proposals that come before this member has begun, and hands them in after ``start``. It keeps the
  round for a while after its end, to be asked.
- It answers a proposal with its own, so that members with differing views learn of each other's.
- It makes another attempt without those that an abandoned one leaves out, if it is not among them.
- It delivers `DeadlinePassed` at ``Round.deadline_s``, which moves once.
- It sends proposals and attestations again until they are acknowledged or the round has ended; a query it
  sends once. An acknowledged attestation is `AttestationDelivered`, an outcome in a reply is
  `OutcomeLearned`, a query that brought no answer is `OutcomeUnanswered`.
- On a peer's query it handles `OutcomeAsked`, then answers with ``Round.outcome``. A query for a round it
  has never heard of it answers with "unknown".
- On a peer's attestation it handles `AttestationReceived`, then acknowledges it if ``Round.acknowledges``,
  and otherwise answers with the outcome.
"""

from protocol.rounds.actions import (
    Abandon,
    AbandonReason,
    Action,
    AskOutcome,
    Commit,
    Exchange,
    SendAttestation,
    SendProposal,
)
from protocol.rounds.events import (
    AttestationDelivered,
    AttestationReceived,
    DeadlinePassed,
    Event,
    ExchangeFinished,
    OutcomeAsked,
    OutcomeLearned,
    OutcomeUnanswered,
    ProposalReceived,
)
from protocol.rounds.machine import Phase, Round

__all__ = [
    "Abandon",
    "AbandonReason",
    "Action",
    "AskOutcome",
    "AttestationDelivered",
    "AttestationReceived",
    "Commit",
    "DeadlinePassed",
    "Event",
    "Exchange",
    "ExchangeFinished",
    "OutcomeAsked",
    "OutcomeLearned",
    "OutcomeUnanswered",
    "Phase",
    "ProposalReceived",
    "Round",
    "SendAttestation",
    "SendProposal",
]
