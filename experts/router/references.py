"""Gates without a trained router: what every router must beat.

    uniform   g_i = 1/E
    random    g_i = 1 for one i drawn uniformly, for every row anew
    hash      g_i = 1 for the i whose sha256(sha256(h) || uid) is least
    energy    f_R(x)_i = logsumexp of E_i's own logits, then softmax and top k as ever

Hashing follows Roller et al. 2021, "Hash layers for large sparse models", arXiv:2106.04426; the expert is chosen by
rendezvous (Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates", doi:10.1109/90.663936), so
that one that is added takes rows over and moves none among the others. The energy of a classifier is the score of Liu
et al. 2020, "Energy-based out-of-distribution detection", arXiv:2010.03759; it asks the expert whose logits are
largest, though nothing ever trained two experts' logits to one scale.

Legend: B batch, D feature, C class, E expert, K top-k.
"""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from experts.errors import NothingToLearnFrom, SettingOutOfRange, ShapeMismatch
from experts.router.gating import Gates, gate_logits

__all__ = ["energy_gates", "hash_gates", "random_gates", "uniform_gates"]


def uniform_gates(num_rows: int, uids: Collection[str]) -> Gates:
    """Every expert alike, for every row: the plain ensemble.

    Raises:
        SettingOutOfRange: If there is no uid, or one stands twice.
    """
    names = _sorted_distinct(uids)
    return Gates(names, torch.full((num_rows, len(names)), 1 / len(names)))


def random_gates(num_rows: int, uids: Collection[str], generator: torch.Generator) -> Gates:
    """One expert a row, drawn from ``generator``.

    Raises:
        SettingOutOfRange: If there is no uid, or one stands twice.
    """
    names = _sorted_distinct(uids)
    return _one_each(names, torch.randint(len(names), (num_rows,), generator=generator))


def hash_gates(h_BD: Tensor, uids: Collection[str]) -> Gates:
    """One expert a row, by the bytes of its features as little-endian float32: equal rows go to the same expert.

    Portable for equal bits; features that differ in the last bit, as they may between processors, are other rows.

    Raises:
        SettingOutOfRange: If there is no uid, or one stands twice.
        ShapeMismatch: If the features are not ``(B, D)``.
    """
    names = _sorted_distinct(uids)
    if h_BD.ndim != 2:
        raise ShapeMismatch("features", expected=("B", "D"), got=tuple(h_BD.shape))
    # Adding 0 makes -0 into 0, which is the same number.
    rows = (h_BD.detach().float().cpu() + 0.0).numpy().astype("<f4")
    chosen = []
    for row in rows:
        digest = hashlib.sha256(row.tobytes()).digest()
        ranks = [hashlib.sha256(digest + uid.encode()).digest() for uid in names]
        chosen.append(ranks.index(min(ranks)))
    return _one_each(names, torch.tensor(chosen, dtype=torch.int64))


def energy_gates(logits: Mapping[str, Tensor], *, tau: float = 1.0, top_k: int = 1) -> Gates:
    """The experts' own certainty as the router's logits.

    Args:
        logits: Each expert's logits over its own classes ``(B, C_i)``, by uid, at least one.
        tau: As for `gate_logits`.
        top_k: As for `gate_logits`.

    Raises:
        NothingToLearnFrom: If there is no expert.
        ShapeMismatch: If the logits are not ``(B, C_i)`` with one B.
        SettingOutOfRange: If ``tau`` or ``top_k`` is.
    """
    if not logits:
        raise NothingToLearnFrom("energy gates without an expert")
    uids = tuple(sorted(logits))
    num_rows = len(logits[uids[0]])
    for uid in uids:
        if logits[uid].ndim != 2 or len(logits[uid]) != num_rows:
            raise ShapeMismatch(f"logits of {uid}", expected=(num_rows, "C"), got=tuple(logits[uid].shape))
    energies_BE = torch.stack([torch.logsumexp(logits[uid], dim=1) for uid in uids], dim=1)
    return gate_logits(energies_BE, uids, tau=tau, top_k=top_k)


def _sorted_distinct(uids: Collection[str]) -> tuple[str, ...]:
    names = tuple(sorted(uids))
    if not names or len(set(names)) != len(names):
        raise SettingOutOfRange("uids", names, allowed="at least one, distinct")
    return names


def _one_each(uids: tuple[str, ...], chosen_B: Tensor) -> Gates:
    weights_BE = torch.zeros(len(chosen_B), len(uids))
    weights_BE[torch.arange(len(chosen_B)), chosen_B] = 1.0
    return Gates(uids, weights_BE)
