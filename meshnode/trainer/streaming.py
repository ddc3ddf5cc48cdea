"""The daemon's side of streams: when they are read on, and how far they are."""

from collections.abc import Sequence

from meshnode.trainer.deciding import Decider
from meshnode.trainer.parts import TrainerParts
from meshnode.trainer.process import TrainerProcess
from meshnode.trainer.stream_messages import ReadStreams, StreamsRead, StreamState
from meshnode.trainer.task_file import TaskFile

__all__ = ["Streaming"]


class Streaming:
    """Has streams read while no task waits to be learned.

    Args:
        parts: What of the node it works with.
        decider: Knows which experts there are.
    """

    def __init__(self, parts: TrainerParts, decider: Decider) -> None:
        self._parts = parts
        self._decider = decider
        self._read_with: object = None
        """The router with which streams were read last."""
        self.states: tuple[StreamState, ...] = ()
        """How far each was when it was last looked at."""

    async def read_on(self, process: TrainerProcess, learned: Sequence[TaskFile]) -> bool:
        """Have them read a while, if there is more to read, or more is known by which what waits can be judged.

        Args:
            process: The worker, which has nothing else to do.
            learned: Learned tasks whose files are there.

        Returns: Whether there may be something to learn or to read now.

        Raises:
            TrainerDied: The worker ended meanwhile.
        """
        view = self._parts.contributions.view
        knows_more = view is not self._read_with
        if not any(state.ready or (state.waiting and knows_more) for state in self.states):
            return False
        self._read_with = view
        known = self._decider.known_experts()
        await process.send(
            ReadStreams(
                statistics=await self._parts.contributions.statistics(),
                known=tuple(sorted({name for classes in known.values() for name in classes})),
                learned=tuple(learned),
            )
        )
        answer = await process.receive()
        assert isinstance(answer, StreamsRead)
        self.states = answer.streams
        if answer.found is not None:
            self._parts.telemetry.events.emit("task_found", task=answer.found)
        return answer.found is not None or any(state.ready for state in answer.streams)
