"""Foreign text made safe to show."""

__all__ = ["printable"]


def printable(text: object) -> str:
    """The text with everything that is not a printable character escaped.

    Names, classes and errors come from other peers: an escape sequence in one must not steer the terminal.
    """
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(text))
