"""The rows of the ledger."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from protocol.identifiers import Digest, ExpertUid, PeerId

__all__ = [
    "ContributionRow",
    "DecisionRow",
    "ExpertRow",
    "Forgotten",
    "Generation",
    "NewWeights",
    "Reached",
    "Standing",
    "TaskRow",
    "WithdrawalRow",
    "all_tasks",
]

Standing = Literal["current", "retired", "declined"]
"""How an expert is kept: as what is advertised, trained and averaged; as one that another one here has succeeded; or as
a successor that was rolled back. The latter two are kept to go back to, and answer whoever still asks for them."""

Forgotten = Literal["task", "peer"]
"""What this node was told to forget, so that it does not come back: a task of its own, or what a peer contributed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertRow:
    """An expert this node hosts."""

    uid: ExpertUid
    architecture: Mapping[str, object]
    """A JSON object from which its module can be built; ``kind`` names the form."""
    classes: tuple[str, ...]
    """What it answers for, in the order of its module's columns."""
    origin: Digest | None = None
    """Of the weights that its own descend from; None if these are the initial ones of its uid."""
    ancestors: tuple[ExpertUid, ...] = ()
    """The experts that it succeeds, the oldest first."""
    lineage: Digest | None = None
    """Of the blob that says how; None without ancestors."""
    standing: Standing = "current"
    placed: bool = False
    """Whether it is hosted only because the mesh had too few replicas of it: then it may be given back."""

    @property
    def kind(self) -> str:
        """The registry name of its architecture."""
        return str(self.architecture["kind"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """How far which training run was."""

    run: str
    """Names the run; no two have the same, not even on one task."""
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One state of one expert's weights; never changed once written."""

    uid: ExpertUid
    digest: Digest
    """Of the blob with the weights."""
    cause: str
    """What made it: "initial", "adopted", "imported", "trained", "averaged", "pulled", "migrated",
    "followed", "placed", "redistilled", "begun"."""
    parent: Digest | None
    """Weights it was made from; None for the first."""
    created_at: float
    """Unix seconds."""
    reached: Reached | None
    """The last training run behind it, which averaging keeps; None if it was never trained here."""
    round: int = 0
    """Number of the last averaging round that it holds; 0 before any."""
    tasks: tuple[str, ...] | None = ()
    """Names of this node's tasks that it was trained on, those of its parents among them, sorted; None where that is
    unknown: it is older than this record of it, or learned from images of which nobody knows the task any more."""
    number: int = 0
    """Counts up from 1 on this node, without ever going back; 0 for one that is not written yet."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NewWeights:
    """What an expert's next generation is to be."""

    uid: ExpertUid
    weights: bytes | memoryview
    """As they will be loaded."""
    cause: str
    """As `Generation.cause`."""
    reached: Reached | None = None
    """The last training run behind them; None if there was none here."""
    round: int = 0
    """Number of the last averaging round that they hold; 0 before any."""
    tasks: tuple[str, ...] | None = ()
    """Of this node, that they were trained on since the generation before; None where unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContributionRow:
    """What one peer's data of one task adds to the router."""

    peer_id: PeerId
    task: str
    version: int
    sealed: bytes
    """The contribution as its peer signed it."""
    statistics: Digest
    """Of the blob with the class statistics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WithdrawalRow:
    """That nothing of one peer and task counts up to a version."""

    peer_id: PeerId
    task: str
    version: int
    sealed: bytes
    """The withdrawal as its peer signed it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRow:
    """A task file the node was given to learn."""

    name: str
    digest: Digest
    """Of the file: the same name with other content is to be learned again."""
    state: str
    """How far it has come, in the trainer's words."""
    learned_at: float | None
    """Unix seconds; None before it is learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRow:
    """What was decided on one content of a task, and what came of it."""

    task: str
    digest: Digest
    """Of its file."""
    at: float
    """When it was decided, in Unix seconds."""
    decision: Mapping[str, object] | None
    """A JSON object, `meshnode.trainer.deciding.Decided`; None if the task failed before anything was decided."""
    outcome: str | None
    """In the trainer's words; None while it is under way."""
    facts: Mapping[str, object]
    """A JSON object: what the task was, and what learning it took."""


def all_tasks(*known: Collection[str] | None) -> tuple[str, ...] | None:
    """Tasks of all of these, sorted; None if some are unknown."""
    found: set[str] = set()
    for tasks in known:
        if tasks is None:
            return None
        found.update(tasks)
    return tuple(sorted(found))
