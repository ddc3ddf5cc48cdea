"""Experts of a home on which no daemon runs: taken out into a file, and put in from one."""

import msgspec

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import weights_to_bytes
from experts.errors import ExpertsError
from meshnode.errors import NoSuchPeerOrExpert, Refused
from meshnode.expert_files import already_hosted, expert_to_file, other_origin, read_expert_file
from meshnode.forms import form_of
from meshnode.home import Home
from meshnode.hosting import IMPORTED
from meshnode.lock import DaemonLock
from meshnode.mesh import Mesh, load_mesh
from meshnode.state.rows import ExpertRow
from meshnode.state.state import State
from protocol.identifiers import Digest, digest_of
from protocol.records import ExpertAdvert

__all__ = ["export_kept", "import_kept"]


def export_kept(home: Home, uid: str) -> bytes:
    """The newest intact generation of an expert that a home keeps, as a file.

    Args:
        uid: The expert's, or how it begins.

    Raises:
        NoSuchPeerOrExpert: The home keeps no such expert, or several.
        Refused: It belongs to no mesh, or this machine cannot build the expert.
        AlreadyRunning: A daemon runs on it.
    """
    with DaemonLock(home), State(home) as state:
        mesh = _mesh_of(home, state)
        kept = [row for row in state.hosted_experts() if row.uid.startswith(uid)]
        if not uid or len(kept) != 1:
            raise NoSuchPeerOrExpert(uid)
        advert, origin = _kept(state, kept[0])
        return expert_to_file(advert, mesh.mesh_id, origin, state.blobs.get(advert.weights))


def import_kept(home: Home, data: bytes, *, replace: bool) -> ExpertAdvert:
    """Keep the expert of a file in a home; the next daemon on it hosts it.

    Args:
        data: The file's bytes.
        replace: Whether its weights may take the place of those that are kept of the same expert.

    Returns: What was kept, with the number of the new generation.

    Raises:
        ExpertFileRefused: It is no expert of the home's mesh.
        Refused: The expert is kept already, the file's weights are of another origin, or the home belongs to no mesh.
        AlreadyRunning: A daemon runs on the home.
    """
    with DaemonLock(home), State(home) as state:
        expert = read_expert_file(data, _mesh_of(home, state))
        advert = expert.advert
        held = [row for row in state.hosted_experts() if row.uid == advert.uid]
        if held and not replace:
            raise already_hosted(advert.uid)
        if held and _kept(state, held[0])[1] != expert.origin:
            raise other_origin(advert.uid)
        architecture = expert.architecture.to_config()
        state.add_expert(advert.uid, architecture=architecture, classes=advert.classes, origin=expert.origin)
        generation = state.commit_generation(advert.uid, expert.weights, cause=IMPORTED, round_=advert.round)
    return msgspec.structs.replace(advert, generation=generation.number)


def _mesh_of(home: Home, state: State) -> Mesh:
    mesh = load_mesh(state)
    if mesh is None:
        raise Refused(f"{home.path} belongs to no mesh yet", hint="`meshnode run --join ADDR` takes it into one.")
    return mesh


def _kept(state: State, row: ExpertRow) -> tuple[ExpertAdvert, Digest]:
    """An expert's newest intact generation as an advert, and its origin."""
    generation = state.current(row.uid)
    if generation is None:
        raise NoSuchPeerOrExpert(row.uid)
    try:
        architecture = architecture_from_config(row.architecture)
        form = form_of(architecture)
    except ExpertsError as failure:
        raise Refused(f"this machine cannot build the expert {row.uid}: {failure}") from failure
    advert = ExpertAdvert(
        uid=row.uid,
        form=form,
        classes=row.classes,
        since=generation.created_at,
        round=generation.round,
        generation=generation.number,
        weights=generation.digest,
    )
    return advert, row.origin or digest_of(weights_to_bytes(architecture.build(row.uid)))
