"""How long the conversation with a broker may take, and how often things are said."""

from dataclasses import dataclass

__all__ = ["MqttTiming"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MqttTiming:
    """Spans in seconds; the defaults suit every node, tests have shorter ones."""

    first_retry_s: float = 1.0
    """Pause after the first failure; doubled after each further one. A broker that restarts is soon back."""
    last_retry_s: float = 60.0
    """Longest pause. Also how long a connection must have held for the pauses to begin anew: two clients that take
    the same session from each other would otherwise do so every second, for ever."""
    look_s: float = 1.0
    """How often the node's state is compared with what the broker was last told."""
    connect_timeout_s: float = 5.0
    """For each address of the broker, and for each step of a TLS handshake."""
    answer_timeout_s: float = 10.0
    """How long the broker may take to answer; much longer than any that works, on a line that is shared."""
    keepalive_s: int = 15
    """A broker that has said nothing for this long is asked for a sign of life, and has as long again to give one. On
    its side, a node that is silent for one and a half times this is offline."""
    goodbye_s: float = 1.0
    """How much longer a node takes to stop because of a broker that does not answer."""
