"""What an expert's new form is judged by: it takes the old one's place only if hardly anything is lost."""

from protocol.lineage import Accuracy

__all__ = ["objection_to"]

_ROUNDING = 1e-9
"""A margin of one image in a hundred is to let one image in a hundred pass."""


def objection_to(accuracy: Accuracy, margin: float) -> str | None:
    """Why the new form may not take the old one's place; None if it may.

    Args:
        accuracy: Of both, on the same images, from which the new one has not learned.
        margin: How far the new one may be below the old one.
    """
    if accuracy.old - accuracy.new <= margin + _ROUNDING:
        return None
    return (
        f"on {accuracy.samples} held-out images the new form is right in {accuracy.new:.1%} and the old one in "
        f"{accuracy.old:.1%}, more than {100 * margin:g} points more"
    )
