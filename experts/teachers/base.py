"""What a teacher is: a local model that scores images over named classes.

Legend: B batch, C class (the teacher's own), H height, W width.
"""

from typing import Protocol

import torch

__all__ = ["Teacher"]


class Teacher(Protocol):
    """A model to distil experts from; it never leaves its node, and may cover only some classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The sorted names of the C classes it scores."""

    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Unnormalised scores ``(B, C)``, columns as in `classes`, without a graph for gradients.

        Args:
            images_BCHW: float32 in [0, 1], of the channels and size the teacher was made for.
        Raises: ShapeMismatch: If the images are of another form.
        """
