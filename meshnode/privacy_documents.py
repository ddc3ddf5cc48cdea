"""What a node has told of itself and of its data, and what it forgot, as the API and the command line show it."""

from dataclasses import asdict
from ipaddress import ip_address
from typing import Any

from msgspec import UnsetType

from experts.continual.gaussian import composed, gaussian_epsilon
from experts.continual.privacy import PrivacyConfig
from meshnode.forget_order import Fate, ForgetReport
from meshnode.runtime import MeshRuntime
from meshnode.settings.config import NodeConfig
from meshnode.settings.sections import PrivacySection
from meshnode.transport.interface import Transport
from protocol.identifiers import ExpertUid, PeerId

__all__ = ["forget_document", "privacy_document"]


def privacy_document(runtime: MeshRuntime, config: NodeConfig, transport: Transport) -> dict[str, Any]:
    """What leaves this machine, read from the parts that send it.

    Args:
        runtime: The node's part in its mesh.
        config: Its settings.
        transport: Counts what it has sent.
    """
    spec, me, trainer = runtime.mesh.spec, transport.peer_id, runtime.trainer.status
    statistics = [of for of in runtime.contributions.held() if of.peer_id == me]
    return {
        "listen": {"host": config.net.listen, "loopback": ip_address(config.net.listen).is_loopback},
        "record": {"name": config.node.name, "peer_id": me, "advertises": config.serve.enabled},
        "parameters": [_expert(runtime, uid, me) for uid in sorted(runtime.host.experts)],
        "statistics": [{"task": of.task, "version": of.version, "samples": dict(of.samples)} for of in statistics],
        "waiting": {task: dict(classes) for task, classes in trainer.waiting.items()},
        "withdrawn": [
            {"task": of.task, "version": of.version} for of in runtime.contributions.withdrawn() if of.peer_id == me
        ],
        "forgotten": runtime.forgotten(),
        "mesh": {"id": runtime.mesh.mesh_id, "name": spec.name, "trunk": spec.trunk, "calibration": spec.calibration},
        "thin_clients": config.serve.enabled and config.serve.thin_clients,
        "hivemind": config.serve.enabled and config.serve.hivemind,
        "mqtt": config.mqtt.url if config.mqtt.enabled else None,
        "sent_bytes": dict(sorted(transport.traffic.sent.items())),
        "protection": {
            "min_samples": config.privacy.min_samples,
            "noise": _noise(config.privacy, spec.statistics_norm, trainer.increments),
        },
    }


def _expert(runtime: MeshRuntime, uid: ExpertUid, me: PeerId) -> dict[str, Any]:
    expert, listing = runtime.host.experts[uid], runtime.directory.experts().get(uid)
    replicas = listing.replicas if listing else ()
    tasks = runtime.tasks_of(uid)
    return {
        "expert": uid,
        "classes": list(expert.classes),
        "generation": expert.generation,
        "parameters": expert.num_parameters,
        "tasks": None if tasks is None else list(tasks),
        "peers": sorted(replica.peer_name for replica in replicas if replica.peer_id != me),
    }


def _noise(section: PrivacySection, norm: float | UnsetType, increments: int) -> dict[str, Any] | None:
    """What was promised for each increment, and what all of them come to; None without noise."""
    if section.epsilon is None:
        return None
    # Of the noise's size, which the norm decides, the promise does not depend.
    terms = PrivacyConfig(epsilon=section.epsilon, delta=section.delta, num_increments=1, max_norm=1.0)
    together = composed([terms.count_mu, terms.sums_mu] * increments)
    return {
        "epsilon": section.epsilon,
        "delta": section.delta,
        "norm": None if isinstance(norm, UnsetType) else norm,
        "increments": increments,
        "total_epsilon": gaussian_epsilon(section.delta, together) if increments else 0.0,
        "total_delta": section.delta if increments else 0.0,
    }


def forget_document(report: ForgetReport) -> dict[str, Any]:
    """What came of an order, or would."""
    request = report.request
    return {
        "schema": "meshnode.forget/1",
        "task": request.task,
        "peer": request.peer,
        "undo": request.undo,
        "dry_run": request.dry_run,
        "dropped": [asdict(gone) for gone in report.dropped],
        "retired": [_fate(fate) for fate in report.retired],
        "redistilled": [{**_fate(fate), "tasks": list(fate.tasks)} for fate in report.redistilled],
        "not_forgotten": [asdict(left) for left in report.not_forgotten],
    }


def _fate(fate: Fate) -> dict[str, Any]:
    return {"expert": fate.uid, "classes": list(fate.classes), "reason": fate.reason}
