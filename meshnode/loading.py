"""A replica as the state has kept it, made ready to serve.

Legend: P parameters.
"""

from contextlib import suppress

import numpy as np

from experts.architectures.base import Architecture
from experts.architectures.registry import architecture_from_config
from experts.checkpoint import flat_parameters, load_weights, weights_to_bytes
from experts.errors import ExpertsError
from meshnode.generations import digest_of_vector, drift_of
from meshnode.hosted import IMPORTED, MERGED, REDISTILLED, TRAINED, HostedExpert
from meshnode.state.rows import ExpertRow, Generation
from meshnode.state.state import State
from protocol.errors import BlobCorrupt, UnknownBlob
from protocol.identifiers import ExpertUid, digest_of

__all__ = ["load_replica"]


def load_replica(state: State, row: ExpertRow, generation: Generation, *, device: str, since: float) -> HostedExpert:
    """One that is kept.

    Args:
        state: Where it is kept.
        row: What is written of it.
        generation: A whole one of it.
        device: Where the module is to live.
        since: From when on it is hosted, in seconds since the epoch.

    Raises:
        ExpertsError: This machine cannot build it.
    """
    architecture = architecture_from_config(row.architecture)
    module = architecture.build(row.uid)
    origin = row.origin or digest_of(weights_to_bytes(module))
    load_weights(module, state.blobs.get(generation.digest))
    reference = _kept_reference(state, row.uid, architecture)
    drift = drift_of(flat_parameters(module).numpy(), reference)
    return HostedExpert(
        uid=row.uid,
        classes=row.classes,
        architecture=architecture,
        module=module.to(device),
        generation=generation.number,
        weights=generation.digest,
        committed_at=generation.created_at,
        since=since,
        origin=origin,
        ancestors=row.ancestors,
        lineage=row.lineage,
        standing=row.standing,
        placed=row.placed,
        round=generation.round,
        reference=reference,
        reference_digest=digest_of_vector(reference),
        drift=drift,
        reached=generation.reached,
    )


def _kept_reference(state: State, uid: ExpertUid, architecture: Architecture) -> np.ndarray | None:
    """The newest parameters still kept that were not learned here; None if there are none any more."""
    for generation in state.ledger.generations(uid):
        if generation.cause not in {TRAINED, IMPORTED, REDISTILLED, MERGED}:
            module = architecture.build(uid)
            with suppress(ExpertsError, UnknownBlob, BlobCorrupt):
                load_weights(module, state.blobs.get(generation.digest))
                return np.asarray(flat_parameters(module).numpy())
    return None
