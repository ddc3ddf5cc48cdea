"""The Gaussian mechanism's privacy, exactly: noise of deviation sigma on what one sample changes by Delta, in L2.

With mu = Delta / sigma it is (epsilon, delta)-differentially private if and only if

    delta >= Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)

(Balle and Wang 2018, "Improving the Gaussian mechanism for differential privacy", arXiv:1805.06530, theorem 8: the
analytic Gaussian mechanism). Several such mechanisms on the same sample, each chosen after the results of those before,
are together one of mu = sqrt(sum_k mu_k^2) (Dong, Roth and Su 2022, "Gaussian differential privacy",
arXiv:1905.02383, corollary 2).
"""

import math
from collections.abc import Iterable

from scipy.special import log_ndtr, ndtr

from experts.errors import SettingOutOfRange

__all__ = ["composed", "gaussian_delta", "gaussian_epsilon", "largest_mu"]

_HALVINGS = 200
"""Of an interval: more than a float64 has bits."""


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The least delta at which noise of this mu is private.

    Args:
        epsilon: At least 0.
        mu: Sensitivity over deviation, at least 0; 0 tells nothing.
    """
    _require("epsilon", epsilon, least=0.0)
    _require("mu", mu, least=0.0)
    if mu == 0:
        return 0.0
    # e^epsilon times a tail in logarithms: alone, the one overflows and the other underflows.
    tail = math.exp(min(0.0, epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu)) - tail)


def gaussian_epsilon(delta: float, mu: float) -> float:
    """The least epsilon at which noise of this mu is private with this delta.

    Args:
        delta: In (0, 1).
        mu: At least 0.
    """
    _require_delta(delta)
    low, high = 0.0, 1.0
    if gaussian_delta(low, mu) <= delta:
        return 0.0
    while gaussian_delta(high, mu) > delta:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def largest_mu(epsilon: float, delta: float) -> float:
    """The largest mu, and so the least noise, that is (epsilon, delta)-private.

    Args:
        epsilon: Above 0.
        delta: In (0, 1).

    Raises:
        SettingOutOfRange: If one is not.
    """
    if not 0.0 < epsilon < math.inf:
        raise SettingOutOfRange("epsilon", epsilon, allowed="finite and above 0")
    _require_delta(delta)
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) <= delta:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= delta else (low, middle)
    return low


def composed(mus: Iterable[float]) -> float:
    """mu of several mechanisms on the same sample together."""
    return math.sqrt(sum(mu * mu for mu in mus))


def _require(name: str, value: float, *, least: float) -> None:
    if not least <= value < math.inf:
        raise SettingOutOfRange(name, value, allowed=f"finite and at least {least:g}")


def _require_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise SettingOutOfRange("delta", delta, allowed="in (0, 1)")
