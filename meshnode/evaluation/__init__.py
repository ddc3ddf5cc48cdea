"""``meshnode eval``: methods of continual learning on a scenario, public or of the user's own data."""

from meshnode.evaluation.plan import Plan
from meshnode.evaluation.run import Evaluated, evaluate

__all__ = ["Evaluated", "Plan", "evaluate"]
