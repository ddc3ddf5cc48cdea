"""A node's answers to its user as plain documents, as the HTTP API and the command line show them."""

from collections import Counter
from typing import Any

from meshnode.hosted import HostedExpert
from meshnode.inference import Prediction
from meshnode.listings import ExpertListing
from meshnode.replica_pulls import ReplicaPull
from meshnode.runtime import MeshRuntime
from protocol.identifiers import ExpertUid, PeerId
from protocol.records import ExpertAdvert

__all__ = [
    "averaging_document",
    "expert_documents",
    "hosted_document",
    "infer_document",
    "left_out_documents",
    "peer_documents",
    "pull_document",
    "specialization_document",
    "training_document",
]


def infer_document(prediction: Prediction) -> dict[str, Any]:
    """A prediction, and which expert of which peer answered each row with what gate weight."""
    route = [
        {
            "row": row,
            "expert": call.expert,
            "peer": call.peer_id,
            "peer_name": call.peer_name,
            "gate": gate,
            "ms": call.elapsed_ms,
            "ok": call.error is None,
            "error": call.error,
        }
        for call in prediction.calls
        for row, gate in zip(call.rows, call.gates, strict=True)
    ]
    return {
        "schema": "meshnode.infer/1",
        "classes": list(prediction.classes),
        "predictions": list(prediction.predictions),
        "outputs": prediction.outputs_BC.tolist(),
        "missing_mass": prediction.missing_mass_B.tolist(),
        "route": sorted(route, key=lambda entry: (entry["row"], -entry["gate"])),
        "elapsed_ms": prediction.elapsed_ms,
    }


def peer_documents(runtime: MeshRuntime, me: PeerId, now_s: float) -> list[dict[str, Any]]:
    """Live peers of the mesh, this node among them."""
    return [
        {
            "peer_id": record.peer_id,
            "name": record.peer_name,
            "experts": len(record.experts),
            "expires_in_s": round(record.expires_at - now_s, 1),
            "self": record.peer_id == me,
        }
        for record in runtime.directory.records()
    ]


def expert_documents(runtime: MeshRuntime, *, local: bool) -> list[dict[str, Any]]:
    """Experts of the mesh, superseded ones too, or those hosted here; those kept here are among them in any case."""
    host, listings = runtime.host, runtime.directory.experts()
    current = runtime.directory.current().values()
    superseded_by = {
        uid: listing.uid for listing in current for uid in (*listing.ancestors, *(older.uid for older in listing.older))
    }
    holders = {kin.uid: len(listing.holders) for listing in current for kin in listing.family}
    adverts = {uid: expert.advert() for uid, expert in host.retired.items()}
    adverts |= {uid: listing.replicas[0].advert for uid, listing in listings.items()}
    return [
        _expert_document(runtime, advert, listings.get(uid), superseded_by.get(uid), holders.get(uid, 0))
        for uid, advert in sorted(adverts.items())
        if host.find(uid) is not None or not local
    ]


def specialization_document(runtime: MeshRuntime) -> dict[str, Any]:
    """Who works for which class, as last measured on the tasks learned here."""
    measured = runtime.trainer.specialization
    return {
        "schema": "meshnode.specialization/1",
        "tasks": runtime.learned_tasks(),
        "measured": None if measured is None else measured.to_dict(),
    }


def left_out_documents(runtime: MeshRuntime) -> list[dict[str, Any]]:
    """Experts that this node cannot use, advertised by peers or kept in its own state, each with the reason."""
    return [
        {"uid": entry.uid, "name": entry.peer_name, "reason": entry.reason} for entry in runtime.directory.left_out()
    ] + [{"uid": uid, "name": "self", "reason": reason} for uid, reason in sorted(runtime.host.unusable.items())]


def _expert_document(
    runtime: MeshRuntime,
    advert: ExpertAdvert,
    listing: ExpertListing | None,
    superseded_by: ExpertUid | None,
    num_holders: int,
) -> dict[str, Any]:
    here = runtime.host.find(advert.uid)
    return {
        "uid": advert.uid,
        "kind": advert.form.kind,
        "config": advert.form.config,
        "classes": list(advert.classes),
        "ancestors": list(advert.ancestors),
        "superseded_by": superseded_by,
        "replicas": [
            {
                "peer_id": replica.peer_id,
                "name": replica.peer_name,
                "generation": replica.advert.generation,
                "weights": replica.advert.weights,
                "leaving": replica.leaving,
            }
            for replica in (listing.replicas if listing else ())
        ],
        "local": advert.uid in runtime.host.experts,
        "standing": here.standing if here else None,
        "placed": here is not None and here.placed,
        "holders": num_holders,
        "parameters": runtime.mesh.architecture(advert.form, len(advert.classes)).num_parameters,
    }


def hosted_document(expert: HostedExpert) -> dict[str, Any]:
    """A replica hosted here, as it serves."""
    return {
        "uid": expert.uid,
        "classes": list(expert.classes),
        "generation": expert.generation,
        "weights": expert.weights,
        "ancestors": list(expert.ancestors),
        "lineage": expert.lineage,
        "standing": expert.standing,
    }


def pull_document(pull: ReplicaPull) -> dict[str, Any]:
    """An order for a replica, as it stands."""
    return {
        "uid": pull.uid,
        "peer": pull.source,
        "state": pull.state,
        "done_bytes": pull.done_bytes,
        "total_bytes": pull.total_bytes,
        "error": pull.error,
    }


def averaging_document(runtime: MeshRuntime) -> dict[str, Any]:
    """Rounds so far, and the last committed one of each expert."""
    results: Counter[str] = runtime.averager.results
    others = {
        uid: len(listing.replicas) > (uid in runtime.host.experts)
        for uid, listing in runtime.directory.experts().items()
    }
    return {
        "enabled": True,
        "replicated": sum(others.get(uid, False) for uid in runtime.host.experts),
        "committed": results["committed"],
        "abandoned": {reason: count for reason, count in sorted(results.items()) if reason != "committed"},
        "lost_to_differing_views": round(results["differing_views"] / max(1, results.total()), 4),
        "waiting": list(runtime.averager.waiting()),
        "last_committed": {
            uid: {"round": number, "members": list(members)}
            for uid, (number, members) in sorted(runtime.averager.last_committed.items())
        },
    }


def training_document(runtime: MeshRuntime) -> dict[str, Any]:
    """What the trainer is doing, what it has learned, and what was decided last."""
    status = runtime.trainer.status
    return {
        "state": status.state,
        "reason": status.reason,
        "task": status.task,
        "stage": status.stage,
        "done": status.done,
        "total": status.total,
        "loss": status.loss,
        "left_s": status.left_s,
        "replay_samples": status.replay_samples,
        "unreadable": dict(status.unreadable),
        "failed": dict(status.failed),
        "unusable_teachers": dict(status.unusable_teachers),
        "restarts": status.restarts,
        "pid": status.pid,
        "unlabelled": list(status.unlabelled),
        "learned": runtime.learned_tasks(),
        "decided": runtime.trainer.last_decision,
        "streams": [
            {
                "name": stream.name,
                "batches": stream.batches,
                "tasks": stream.tasks,
                "waiting": stream.waiting,
                "gathered": stream.gathered,
                "dropped": stream.dropped,
            }
            for stream in runtime.trainer.streams
        ],
    }
