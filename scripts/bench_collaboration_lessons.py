"""When a mesh knows how much: lessons of CPU seconds, and what they have to send over a line of each node's own.

A node learns its lessons one after another, on one core. What a lesson gives leaves over the node's line while it goes
on with the next one; what is averaged has to wait for the lines. As all lines are alike, nobody receives more at once
than its line carries. Nothing here is measured: seconds and bytes are arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench_collaboration_time import ROUND_TRIPS, Line

__all__ = ["Course", "Lesson", "arrivals", "time_to"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What a node learns of one task."""

    task: int
    cpu_s: float
    result_bytes: int
    """What every peer fetches of it."""
    round_bytes: Sequence[int] = ()
    """What the node sends in each round of averaging that the lesson waits for."""


Course = Sequence[tuple[float, float]]
"""Seconds and accuracy in percent, as the mesh comes to know more."""


def arrivals(nodes: Sequence[Sequence[Lesson]], line: Line) -> Mapping[tuple[int, int], float]:
    """When what each node has learned of each task is everywhere, in seconds, by node and task.

    Nodes that average a task begin and end it together: the slowest is waited for.

    Args:
        nodes: The lessons of each, in their order.
    """
    free_s = [0.0] * len(nodes)
    line_free_s = [0.0] * len(nodes)
    arrived: dict[tuple[int, int], float] = {}
    for step in range(max(map(len, nodes))):
        lessons = {node: own[step] for node, own in enumerate(nodes) if step < len(own)}
        for node, lesson in lessons.items():
            free_s[node] += lesson.cpu_s
        averaging = {node: lesson.round_bytes for node, lesson in lessons.items() if lesson.round_bytes}
        if averaging:
            rounds_s = max(
                ROUND_TRIPS * line.round_trip_s * len(sent) + line.sending_s(sum(sent)) for sent in averaging.values()
            )
            done_s = max(free_s[node] for node in averaging) + rounds_s
            for node, sent in averaging.items():
                free_s[node] = done_s
                line_free_s[node] += line.sending_s(sum(sent))  # results that still leave make way
        for node, lesson in lessons.items():
            if len(nodes) == 1:
                arrived[node, lesson.task] = free_s[node]  # nobody has to be told
                continue
            begun_s = max(free_s[node], line_free_s[node])
            line_free_s[node] = begun_s + line.sending_s((len(nodes) - 1) * lesson.result_bytes)
            # Peers have to hear of it, and to ask for it.
            arrived[node, lesson.task] = line_free_s[node] + 2 * ROUND_TRIPS * line.round_trip_s
    return arrived


def time_to(target: float, course: Course) -> float | None:
    """The first moment from which on the accuracy stays at the target or above; None if it does not get there."""
    reached: float | None = None
    for moment_s, accuracy in course:
        if accuracy < target:
            reached = None
        elif reached is None:
            reached = moment_s
    return reached
