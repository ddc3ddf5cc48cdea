"""What a node tells of itself while it works: events, and measurements that add up over time.

Each node has one `Telemetry`, which its parts share; two nodes in one process tell nothing of each other.
"""

from dataclasses import dataclass, field

from meshnode.telemetry.events import Events
from meshnode.telemetry.instruments import Instruments

__all__ = ["Telemetry"]


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the parts of one node report to."""

    events: Events = field(default_factory=Events)
    instruments: Instruments = field(default_factory=Instruments)
