"""Experts of a home on which no daemon runs: taken out into a file, and put in from one."""

import msgspec

from experts.architectures.registry import architecture_from_config
from experts.checkpoint import weights_to_bytes
from experts.errors import ExpertsError
from meshnode.errors import NoSuchPeerOrExpert, Refused
from meshnode.expert_files import already_hosted, expert_to_file, other_origin, read_expert_file
from meshnode.forms import form_of
from meshnode.home import Home
from meshnode.hosted import IMPORTED
from meshnode.lock import DaemonLock
from meshnode.mesh import Mesh, load_mesh
from meshnode.state.rows import ExpertRow
from meshnode.state.state import State
from protocol.identifiers import Digest, digest_of
from protocol.records import ExpertAdvert

__all__ = ["export_kept", "import_kept", "kept_mesh"]


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
        lineage = None if advert.lineage is None else state.blobs.get(advert.lineage)
        return expert_to_file(advert, mesh.mesh_id, origin, state.blobs.get(advert.weights), lineage)


def import_kept(home: Home, data: bytes, *, replace: bool) -> ExpertAdvert:
    """Keep the expert of a file in a home; the next daemon on it hosts it, in the place of one that it succeeds.

    Args:
        data: The file's bytes.
        replace: Whether its weights may take the place of those that are kept of the same expert.

    Returns: What was kept, with the number of the new generation.

    Raises:
        ExpertFileRefused: It is no expert of the home's mesh.
        Refused: The expert is kept already, the file's weights are of another origin, a successor of it is current
            there, it was rolled back there, or the home belongs to no mesh.
        AlreadyRunning: A daemon runs on the home.
    """
    with DaemonLock(home), State(home) as state:
        expert = read_expert_file(data, _mesh_of(home, state))
        advert = expert.advert
        rows = {row.uid: row for row in state.hosted_experts()}
        held = rows.get(advert.uid)
        if held is not None and not replace:
            raise already_hosted(advert.uid)
        if held is not None and _kept(state, held)[1] != expert.origin:
            raise other_origin(advert.uid)
        current = {uid: row for uid, row in rows.items() if row.standing == "current"}
        is_gone = held is not None and advert.uid not in current
        if is_gone or any(advert.uid in row.ancestors for row in current.values()):
            raise Refused(f"the expert {advert.uid} was succeeded or rolled back in this home")
        row = ExpertRow(
            uid=advert.uid,
            architecture=expert.architecture.to_config(),
            classes=advert.classes,
            origin=expert.origin,
            ancestors=advert.ancestors,
            lineage=advert.lineage,
        )
        old = next((uid for uid in reversed(advert.ancestors) if uid in current), None)
        if held is None and old is not None and expert.lineage is not None:
            generation = state.succeed(old, row, expert.weights, expert.lineage, cause=IMPORTED, round_=advert.round)
        else:
            state.add_expert(
                advert.uid,
                architecture=row.architecture,
                classes=row.classes,
                origin=row.origin,
                ancestors=row.ancestors,
                lineage=expert.lineage,
            )
            generation = state.commit_generation(advert.uid, expert.weights, cause=IMPORTED, round_=advert.round)
            state.keep(advert.uid)
    return msgspec.structs.replace(advert, generation=generation.number)


def kept_mesh(home: Home) -> Mesh:
    """The mesh that a home belongs to, whether a daemon runs on it or not.

    Raises:
        Refused: It belongs to none.
        MeshUnreadable: This version of the program cannot follow its spec or build its trunk.
        StateUnreadable: The ledger is damaged.
    """
    if not home.ledger.exists():
        raise _belongs_to_none(home)
    state = State(home)
    # The ledger alone: to open all of the state would clear away what a daemon is writing.
    with state.ledger.open():
        return _mesh_of(home, state)


def _mesh_of(home: Home, state: State) -> Mesh:
    mesh = load_mesh(state)
    if mesh is None:
        raise _belongs_to_none(home)
    return mesh


def _belongs_to_none(home: Home) -> Refused:
    return Refused(f"{home.path} belongs to no mesh yet", hint="`meshnode run --join ADDR` takes it into one.")


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
        ancestors=row.ancestors,
        lineage=row.lineage,
    )
    return advert, row.origin or digest_of(weights_to_bytes(architecture.build(row.uid)))
