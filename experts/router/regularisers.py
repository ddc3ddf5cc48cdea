"""Terms that push a router to specialize its experts and to use them all, on soft gates, with gradients.

    q_ci = sum over rows x of class c of g_i(x) / M,   pi_i = sum_c q_ci,   p(c|E_i) = q_ci / pi_i

    proposal   sum_i S(E_i),  S(E_i) = -sum_c p(c|E_i) log p(c|E_i)          (section 2.3)
    weighted   N_E sum_i pi_i S(E_i)                                         the default
    balance    N_E sum_i pi_i log pi_i                                       least where all pi_i = 1/N_E

with M the gate mass of the batch and N_E the number of experts. The proposal's sum counts an expert as much
as any other however little it does, so it rewards imbalance: one expert of six classes beside four of one
class scores log 6 = 1.79, a balanced split of the ten classes 5 log 2 = 3.47. Weighted by usage these are
5.38 and 3.47. With equal factors weighted + balance = N_E (H(C) - I(E;C) - H(E)): experts that tell the
classes apart and are all used.

What happens at 0, where logarithms end:

- x log x is computed as x log max(x, 1e-12): 0 at 0, exact from 1e-12 on, with a slope no steeper than
  log 1e-12 = -27.6.
- S has no limit where pi_i goes to 0: it depends on which class comes last. An expert whose usage is not
  above 1e-12 is taken for unused: S = 0 and no gradient from S, as if its first mass came from one class
  alone. Only the balance term calls it back into use.
- Above that, S has a slope of order 1/pi_i in the gates. A softmax before it multiplies this by the gate
  itself, so what reaches the router's logits stays of order log C + 27.6.

Gates must be those before the top-k mask: a masked gate has no gradient towards an expert not chosen.

Legend: B batch, C class, E expert.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from experts.errors import SettingOutOfRange, ShapeMismatch

__all__ = [
    "PROPOSAL",
    "WEIGHTED",
    "RegulariserConfig",
    "balance",
    "entropy_sum",
    "regularisation_loss",
    "weighted_entropy",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegulariserConfig:
    """What is added to the router's loss: lambda R_spec + lambda_b balance.

    Raises:
        SettingOutOfRange: If a field is outside its range.
    """

    form: Literal["weighted", "proposal"] = "weighted"
    """R_spec: entropies weighted by usage, or their plain sum."""

    lambda_s: float = 0.1
    """The proposal's lambda, the factor of R_spec; finite and at least 0."""

    lambda_b: float = 0.1
    """Factor of the balance term, finite and at least 0; it is added to either form."""

    def __post_init__(self) -> None:
        if self.form not in ("weighted", "proposal"):
            raise SettingOutOfRange("form", self.form, allowed="weighted or proposal")
        for name in ("lambda_s", "lambda_b"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise SettingOutOfRange(name, getattr(self, name), allowed="finite and at least 0")


WEIGHTED = RegulariserConfig()
"""The default: entropies weighted by usage, and balance."""

PROPOSAL = RegulariserConfig(form="proposal", lambda_b=0.0)
"""The regulariser as the proposal has it: the plain sum alone."""


def regularisation_loss(gates_BE: Tensor, labels: Tensor, config: RegulariserConfig) -> Tensor:
    """lambda R_spec + lambda_b balance, to be added to the router's task loss.

    Args:
        gates_BE: Soft gates ``(B, E)``, at least 0; gradients flow here. Rows may sum to less than 1: usage is
            a share of the mass there is. A batch without any mass scores 0, with no gradient.
        labels: Integer columns ``(B,)``, or one-hot ``(B, C)``, where a row may also be a distribution over
            classes. Classes without a sample add nothing.
        config: Form and factors.

    Returns: Scalar, nats, in float32 or wider.

    Raises:
        ShapeMismatch: If gates or labels are not of these shapes.
    """
    specialize = weighted_entropy if config.form == "weighted" else entropy_sum
    return config.lambda_s * specialize(gates_BE, labels) + config.lambda_b * balance(gates_BE)


def entropy_sum(gates_BE: Tensor, labels: Tensor) -> Tensor:
    """sum_i S(E_i), the proposal's form; see `regularisation_loss` for arguments, result and errors."""
    return _entropies(_joint_shares(gates_BE, labels)).sum()


def weighted_entropy(gates_BE: Tensor, labels: Tensor) -> Tensor:
    """N_E sum_i pi_i S(E_i), the default; see `regularisation_loss` for arguments, result and errors."""
    q_CE = _joint_shares(gates_BE, labels)
    return q_CE.shape[1] * (q_CE.sum(dim=0) * _entropies(q_CE)).sum()


def balance(gates_BE: Tensor) -> Tensor:
    """N_E sum_i pi_i log pi_i, from -N_E log N_E (all used alike) to 0 (one does everything).

    Args:
        gates_BE: As for `regularisation_loss`.

    Returns: Scalar, nats, in float32 or wider.

    Raises:
        ShapeMismatch: If the gates are not ``(B, E)``.
    """
    # One class of everything: usage does not ask for labels.
    usage_E = _joint_shares(gates_BE, gates_BE.new_zeros(gates_BE.shape[:1], dtype=torch.int64)).sum(dim=0)
    return len(usage_E) * _x_log_x(usage_E).sum()


def _joint_shares(gates_BE: Tensor, labels: Tensor) -> Tensor:
    """q, ``(C, E)``; sums to 1, or is all 0 for a batch without mass. C counts the classes there are samples of."""
    if gates_BE.ndim != 2:
        raise ShapeMismatch("gates", expected=("B", "E"), got=tuple(gates_BE.shape))
    if labels.ndim not in (1, 2) or len(labels) != len(gates_BE):
        raise ShapeMismatch("labels", expected=(len(gates_BE), "C"), got=tuple(labels.shape))
    # Half precision has no 1e-12, and sums of a batch lose digits there.
    gates_BE = gates_BE.to(torch.promote_types(gates_BE.dtype, torch.float32))
    if labels.ndim == 1:
        present, rows_B = torch.unique(labels, return_inverse=True)
        mass_CE = gates_BE.new_zeros(len(present), gates_BE.shape[1]).index_add(0, rows_B, gates_BE)
    else:
        # No matrix product: under autocast it would come back in half precision.
        mass_CE = (labels.to(gates_BE.dtype)[:, :, None] * gates_BE[:, None, :]).sum(dim=0)
    total = mass_CE.sum()
    # By infinity where there is nothing to divide: shares and their gradients are then 0, never NaN.
    return mass_CE / total.where(total > _UNUSED, torch.inf)


def _entropies(q_CE: Tensor) -> Tensor:
    """S, ``(E,)``, at least 0; 0 for an expert that is not used."""
    usage_E = q_CE.sum(dim=0)
    return -_x_log_x(q_CE / usage_E.where(usage_E > _UNUSED, torch.inf)).sum(dim=0)


def _x_log_x(x: Tensor) -> Tensor:
    return x * x.clamp_min(_UNUSED).log()


_UNUSED = 1e-12
"""Share below which a logarithm is cut off; far below what a share of any batch means, far above the least
float32, whose reciprocal overflows."""
