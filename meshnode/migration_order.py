"""An order to carry an expert over into another form: what is asked for, and how it stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from experts.preservation.mapping import Similarity
from experts.preservation.scores import ScoreName
from experts.preservation.transfer import TransferConfig
from meshnode.trainer.messages import Progress
from protocol.identifiers import ExpertUid
from protocol.limits import MAX_CONFIG_FIELDS
from protocol.lineage import Accuracy, LayerTransfer
from protocol.spec import ExpertForm

__all__ = ["Migration", "MigrationRequest", "WantedForm"]

MAX_STEPS: Final = 100_000
"""Distillation steps of one order: minutes, in which nothing else is learned."""

USUAL_STEPS: Final = 100
"""They take a second or less, and mend much of what a narrower form has lost."""

Stage = Literal["waiting", "following", "transferring", "distilling", "judging", "done", "refused", "failed"]

_STAGES: Final[Mapping[str, Stage]] = {"transfer": "transferring", "distil": "distilling", "judge": "judging"}
"""By the worker's own words."""


class WantedForm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form to carry an expert over into."""

    kind: str
    settings: Annotated[dict[str, bool | int | float | str], msgspec.Meta(max_length=MAX_CONFIG_FIELDS)] = {}
    """Of the kind, by name; for those not given see `meshnode.forms.successor_form`."""


class MigrationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user asks for; None means what is usual, of the node or of `TransferConfig`."""

    to: WantedForm
    margin: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """How far the new form's accuracy may be below the old one's."""
    steps: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEPS)] = USUAL_STEPS
    """Distillation steps with the old form as teacher."""
    beta: float | None = None
    score: ScoreName | None = None
    similarity: Similarity | None = None
    refit: bool | None = None
    """These four as in `TransferConfig`."""

    def config(self) -> TransferConfig:
        """How parameters are to be carried over. Raises SettingOutOfRange if they cannot be carried over so."""
        names = ("beta", "score", "similarity", "refit")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return TransferConfig(**given)


@dataclass(kw_only=True, eq=False, slots=True)
class Migration:
    """One order, as it stands."""

    uid: ExpertUid
    """The expert that is carried over."""
    successor: ExpertUid
    """What it becomes; decided by the form, before anything is done."""
    form: ExpertForm
    config: TransferConfig
    steps: int
    margin: float
    state: Stage = "waiting"
    done: int = 0
    total: int = 0
    """Distillation steps; 0 in other stages."""
    left_s: float | None = None
    """Estimated seconds until the stage ends."""
    accuracy: Accuracy | None = None
    """Of both forms; None before it was measured."""
    layers: tuple[LayerTransfer, ...] = ()
    """Of what was made here; empty before."""
    followed: bool = False
    """Whether a peer had made the same already, and this node took that over."""
    error: Mapping[str, str | None] | None = None
    """Code, message and hint of what it ended with, if not with success."""

    @property
    def asks_for(self) -> tuple[object, ...]:
        """What is to be done, and how: equal for orders that come to the same."""
        return self.successor, self.config, self.steps, self.margin

    @property
    def is_over(self) -> bool:
        return self.state in {"done", "refused", "failed"}

    def note(self, progress: Progress) -> None:
        """Take in what the worker says."""
        self.state = _STAGES[progress.stage]
        self.done, self.total = progress.done, progress.total
        self.left_s = round(progress.left_s, 1) if progress.total else None

    def end(self, state: Literal["done", "refused", "failed"], error: Mapping[str, str | None] | None = None) -> None:
        """It is over."""
        self.state, self.error, self.left_s = state, error, None
