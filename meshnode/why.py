"""Why something is not happening, and how to change it: the status document read as a person would read it.

Nothing is asked and nothing is measured here; what a daemon does not tell of itself is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["TOPICS", "Reason", "reasons", "standing"]

Status = Mapping[str, Any]
"""``meshnode.status/1``; any field may be missing, for a daemon may be of another version than its reader."""

CHOSEN_DEVICE = "set by compute.device"
"""How a status says that the device is its owner's choice (`meshnode.device`, which imports torch)."""

MAX_NAMED = 3
"""Task files or addresses told one by one; the rest are counted."""

_AWAITS_MESH = "there is no mesh yet"
_SEE_MESH = "`meshnode why mesh` says what is missing."

_LOOK_AGAIN = "`meshnode train now` looks again."

_ABANDONED = {
    "differing_views": (
        "the members saw different groups",
        "Nothing: views agree a few seconds after a peer came or went. If it goes on, compare `meshnode peers ls`.",
    ),
    "differing_origins": (
        "a member's replica descends from other weights",
        (
            "Nothing if both nodes spawned it: one gives its own up once no task is under way. Else drop one, or "
            "import it as an expert of its own: parameters of different origin have no mean."
        ),
    ),
    "differing_settings": (
        "a member averages in another way",
        "Give method, group, compression and weighting in [average] the same values at all nodes.",
    ),
    "incomplete": (
        "the exchange did not finish in time",
        "Give it longer with timeout in [average], at every node, or look for a slow connection between the members.",
    ),
    "not_ready": ("a member could not take part just then", "Nothing: the member joins in once it has started."),
    "partner_abandoned": (
        "another member gave up first",
        "See `meshnode why averaging` at the other members: one of them knows the cause.",
    ),
    "partner_silent": (
        "a member was not heard in time",
        "See whether that peer still runs and can be reached; every must be the same in [average] at all nodes.",
    ),
    "stale": (
        "a replica had missed rounds",
        "Nothing: it pulls what the others have averaged, and joins in again.",
    ),
}
"""What each `protocol.rounds.AbandonReason` that is counted means, and what changes it."""


@dataclass(frozen=True, slots=True)
class Reason:
    """How it stands with one topic."""

    topic: str
    """One of `TOPICS`."""
    state: str
    """What is true."""
    why: str | None = None
    """Cause of what does not happen; None where nothing is held up."""
    change: str | None = None
    """What a person can do about it; None where nothing is held up."""

    def document(self) -> dict[str, str | None]:
        """Its fields, for programs."""
        return {"topic": self.topic, "state": self.state, "why": self.why, "change": self.change}


def reasons(status: Status) -> tuple[Reason, ...]:
    """What is not happening at this node, and why; empty if nothing is held up."""
    return tuple(reason for reason in standing(status) if reason.why is not None)


def standing(status: Status) -> tuple[Reason, ...]:
    """How it stands with every topic that the status tells of, in the order of `TOPICS`."""
    return tuple(reason for tell in _TELLERS.values() for reason in tell(status))


def _daemon(status: Status) -> Sequence[Reason]:
    if status.get("state") == "draining":
        handover = status.get("handover") or {}
        why = "it was asked to stop and ends what is under way"
        if handover.get("under_way"):
            why = f"it hands over {_count(len(handover['left']), 'expert')} that no other node holds"
        return [Reason("daemon", "stopping", why, "`meshnode run` starts it again once it has ended.")]
    return [Reason("daemon", "running")]


def _mesh(status: Status) -> Sequence[Reason]:
    if mesh := status.get("mesh"):
        return [Reason("mesh", f"member of {mesh.get('name')}")]
    entries = status.get("bootstrap") or []
    failing = _failing(status)
    if not entries:
        why = "no peer to join through was given, and no mesh was founded here"
        change = (
            "Join one with `meshnode run --join ADDR`, or join in [net] of config.toml; or found one with "
            "`meshnode init --mesh NAME --data TASK.npz`."
        )
    elif len(failing) == len(entries):
        why = f"no bootstrap address answers: {_named(failing)}"
        change = (
            "See that a node runs there and that its address is right (`meshnode id` at that node tells it). "
            "It is tried again until it answers."
        )
    else:
        why = "the peers of the bootstrap addresses are being asked, and none has sent a mesh yet"
        change = (
            "Wait some seconds. If it stays so, those peers have no mesh themselves, or not the one that id in [mesh] "
            "asks for."
        )
    return [Reason("mesh", "none yet", why, change)]


def _peers(status: Status) -> Sequence[Reason]:
    others = (status.get("peers") or 0) - 1
    if others > 0:
        return [Reason("peers", f"{_count(others, 'other peer')} in the mesh")]
    if not status.get("mesh"):
        return [Reason("peers", "none yet", _AWAITS_MESH, _SEE_MESH)]
    connected = status.get("connected") or 0
    failing = _failing(status)
    if connected:
        why = f"{_count(connected, 'node')} connected, but none has told of itself in this mesh"
        change = "Wait some seconds. If it stays so, they belong to another mesh: compare `meshnode status` there."
    else:
        why = f"no bootstrap address answers: {_named(failing)}" if failing else "no other node has connected"
        address = next(iter(status.get("addresses") or []), "ADDR")
        change = f"On another machine, `meshnode run --join {address}`."
        if _part(status, "listen").get("loopback"):
            change += " This node must listen where it can be reached first: `meshnode why reach`."
    return [Reason("peers", "none but this node", why, change)]


def _training(status: Status) -> Sequence[Reason]:
    training = _part(status, "training")
    state = str(training.get("state", "unknown"))
    told = [
        _files("cannot be read", training.get("unreadable"), f"Mend or remove them. {_LOOK_AGAIN}"),
        _files(
            "could not be learned",
            training.get("failed"),
            f"Mend them: a file that has changed is tried again. {_LOOK_AGAIN}",
        ),
    ]
    return [_trainer(status, training, state), *(reason for reason in told if reason is not None)]


def _trainer(status: Status, training: Mapping[str, Any], state: str) -> Reason:
    reason = training.get("reason")
    match state:
        case "disabled":
            why, change = "switched off", "Set enabled = true in [train], or leave out --no-train, and start again."
        case "waiting" if training.get("unusable_teachers"):
            why = str(reason)
            change = (
                "Mend or remove that entry of teachers in [train]; the extra `modulemesh[teachers]` has what timm:, "
                "torchvision: and hf: need. It is tried again every minute, and at once by `meshnode train now`."
            )
        case "waiting" if status.get("mesh"):
            why, change = reason or "a task cannot be taken up yet", "Nothing: it is tried again every few seconds."
        case "waiting":
            why, change = reason or _AWAITS_MESH, _SEE_MESH
        case "restarting":
            why = reason or "the trainer process ended by itself"
            change = "It starts again by itself; if it keeps ending, the daemon's log has its last words."
        case "idle" if training.get("data") is None:
            why = reason or "no data folder is set"
            change = "Give a folder of task files (*.npz): `meshnode run --data DIR`, or data in [train]."
        case "idle":
            learned = training.get("learned") or []
            why = reason or ("every task file has been learned" if learned else "there is no task file")
            change = f"Put another task file (*.npz) into {training['data']}. {_LOOK_AGAIN}"
        case _:
            task = training.get("task")
            return Reason("training", f"{state} {task}" if task else state)
    return Reason("training", state, why, change)


def _decisions(status: Status) -> Sequence[Reason]:
    """What was decided on the newest task and why, and what waits for labels."""
    training = _part(status, "training")
    told = []
    if unlabelled := training.get("unlabelled"):
        why = f"without labels, they are unlike what is known, or too little is held out to tell: {_named(unlabelled)}"
        change = (
            "Give them labels: a file that has changed is looked at again. They are also looked at whenever more is "
            "known; `meshnode train history` has the distances."
        )
        told.append(Reason("decisions", f"{_count(len(unlabelled), 'task file')} undecided", why, change))
    for stream in training.get("streams") or ():
        if stream["waiting"]:
            why = (
                "three new ones in a row, with some label among them, begin a task; without labels too little may be "
                "held out to tell what is new"
            )
            change = "Nothing: they are looked at again whenever more is known. New classes need labels to be learned."
            state = f"{_count(stream['waiting'], 'batch')} of stream {stream['name']} wait"
            told.append(Reason("decisions", state, why, change))
    last = training.get("decided")
    if not isinstance(last, Mapping) or not isinstance(last.get("decision"), Mapping):
        return told or [Reason("decisions", "none yet")]
    decision = last["decision"]
    return [Reason("decisions", f"{last.get('task')}: {decision.get('action')} ({decision.get('reason')})"), *told]


def _files(what: str, files: object, change: str) -> Reason | None:
    """Task files with the reason each, as one."""
    if not isinstance(files, Mapping) or not files:
        return None
    why = _named([f"{name}: {reason}" for name, reason in files.items()])
    return Reason("training", f"{_count(len(files), 'task file')} {what}", why, change)


def _averaging(status: Status) -> Sequence[Reason]:
    averaging = _part(status, "averaging")
    if averaging.get("enabled") is False:
        return [Reason("averaging", "off", "switched off", "Set enabled = true in [average], and start again.")]
    if _part(status, "serving").get("enabled") is False:
        why = "what is not served is not advertised, so no peer knows of the replicas here"
        return [Reason("averaging", "off", why, "Set enabled = true in [serve], or leave out --no-serve.")]
    if not status.get("mesh"):
        return [Reason("averaging", "none yet", _AWAITS_MESH, _SEE_MESH)]
    if averaging.get("replicated") == 0:
        why = "no expert hosted here has a replica at another peer"
        change = "Nothing needs one: replicas come about when two nodes learn tasks that share a class."
        return [Reason("averaging", "idle", why, change)]
    committed = averaging.get("committed") or 0
    abandoned = averaging.get("abandoned") or {}
    num_abandoned = sum(abandoned.values())
    state = f"{_count(committed, 'round')} committed, {num_abandoned} abandoned"
    # One now and then is what a mesh of volunteers is like; when most are, averaging does not happen.
    if num_abandoned <= committed:
        return [Reason("averaging", state)]
    commonest = max(abandoned, key=lambda reason: abandoned[reason])
    meaning, change = _ABANDONED.get(commonest, (commonest, "`meshnode doctor` looks closer."))
    return [Reason("averaging", state, f"mostly because {meaning} ({abandoned[commonest]} times)", change)]


def _replicas(status: Status) -> Sequence[Reason]:
    """Experts that the mesh would lose with a node or two."""
    if not status.get("mesh"):
        return [Reason("replicas", "none yet", _AWAITS_MESH, _SEE_MESH)]
    placement = _part(status, "placement")
    short, wanted = placement.get("short") or [], placement.get("replicas")
    if not short:
        return [Reason("replicas", "not told of" if wanted is None else f"{wanted} or more of every expert")]
    why = _named(
        [f"expert {entry['uid'][:12]} has {_count(entry['replicas'], 'replica')}: {entry['reason']}" for entry in short]
    )
    change = (
        "Let another node join, give the nodes more room (room and room_mib in [place]), or pull it at one of them."
    )
    return [Reason("replicas", f"{_count(len(short), 'expert')} with fewer than {wanted}", why, change)]


def _serving(status: Status) -> Sequence[Reason]:
    serving = _part(status, "serving")
    if serving.get("enabled") is False:
        change = "Set enabled = true in [serve], or leave out --no-serve, and start again."
        return [Reason("serving", "off", "switched off: other peers' inference is not answered", change)]
    if _part(status, "experts").get("local") == 0:
        why = "no expert is hosted here"
        return [Reason("serving", "nothing to serve", why, "Learn a task: `meshnode why training` says what it takes.")]
    waiting = serving.get("queue")
    return [Reason("serving", f"on, {_count(waiting, 'request')} waiting" if waiting else "on")]


def _routing(status: Status) -> Sequence[Reason]:
    if not status.get("mesh"):
        return [Reason("routing", "none yet", _AWAITS_MESH, _SEE_MESH)]
    left_out = _left_out(status)
    router = _part(status, "router")
    contributions = router.get("contributions")
    if contributions == 0:
        why = "no peer of the mesh has contributed statistics of its data, so nothing can be sent to an expert"
        change = "Let a node of the mesh learn a task: `meshnode run --data DIR`."
        return [Reason("routing", "router empty", why, change), *left_out]
    num_classes = len(router.get("samples") or ())
    return [
        Reason("routing", f"{_count(contributions or 0, 'contribution')} of {_count(num_classes, 'class')}"),
        *left_out,
    ]


def _left_out(status: Status) -> list[Reason]:
    """Experts that are advertised, or kept here, and cannot be used by this node."""
    entries = _part(status, "experts").get("left_out") or []
    if not entries:
        return []
    why = _named([f"{str(entry.get('uid'))[:12]} at {entry.get('name')}: {entry.get('reason')}" for entry in entries])
    change = (
        "For an unknown kind, install the package that declares it, and start again; else it is for that peer to mend."
    )
    return [Reason("routing", f"{_count(len(entries), 'expert')} left out", why, change)]


def _device(status: Status) -> Sequence[Reason]:
    device = _part(status, "device")
    used, reason = str(device.get("used", "unknown")), device.get("reason")
    if used != "cpu" or reason in (None, CHOSEN_DEVICE):
        return [Reason("device", f"{used}, {reason}" if reason else used)]
    change = (
        "On a machine with an NVIDIA GPU, install a CUDA build of torch (https://pytorch.org/get-started) and see that "
        '`nvidia-smi` lists the GPU; `meshnode doctor` looks at both. device = "cpu" in [compute] settles for the CPU.'
    )
    return [Reason("device", used, str(reason), change)]


def _reach(status: Status) -> Sequence[Reason]:
    listen = _part(status, "listen")
    host = listen.get("host", "unknown")
    if not listen.get("loopback"):
        return [Reason("reach", f"listens on {host}")]
    change = "`meshnode run --listen 0.0.0.0 --port PORT`, or listen and port in [net], and let the firewall pass it."
    return [Reason("reach", "this machine only", f"it listens on {host}: no other machine can connect to it", change)]


def _mqtt(status: Status) -> Sequence[Reason]:
    mqtt = _part(status, "mqtt")
    if not mqtt.get("enabled"):
        return [Reason("mqtt", "off")]
    dropped = f", {_count(mqtt['dropped'], 'message')} dropped" if mqtt.get("dropped") else ""
    if mqtt.get("connected"):
        return [Reason("mqtt", f"connected{dropped}")]
    why = mqtt.get("error") or "the broker has not answered yet"
    if not status.get("mesh"):  # topics begin with the mesh's name
        return [Reason("mqtt", "not connected", why, _SEE_MESH)]
    change = "See that the broker runs, and that url, user and password_file in [mqtt] are right. It is tried again."
    return [Reason("mqtt", f"not connected{dropped}", why, change)]


def _config(status: Status) -> Sequence[Reason]:
    config = _part(status, "config")
    if not config.get("changed"):
        return [Reason("config", "as at the start")]
    why = f"{config.get('path', 'config.toml')} was changed after the daemon had started"
    return [Reason("config", "not in force", why, "`meshnode stop`, then `meshnode run`.")]


_TELLERS = {
    "daemon": _daemon,
    "mesh": _mesh,
    "peers": _peers,
    "training": _training,
    "decisions": _decisions,
    "averaging": _averaging,
    "replicas": _replicas,
    "serving": _serving,
    "routing": _routing,
    "device": _device,
    "reach": _reach,
    "mqtt": _mqtt,
    "config": _config,
}

TOPICS = tuple(_TELLERS)
"""What can be asked about."""


def _part(status: Status, name: str) -> Mapping[str, Any]:
    part = status.get(name)
    return part if isinstance(part, Mapping) else {}


def _failing(status: Status) -> list[str]:
    """Bootstrap addresses with their last error."""
    entries = status.get("bootstrap") or []
    return [f"{entry.get('address')} ({entry['error']})" for entry in entries if entry.get("error")]


def _named(items: Sequence[str]) -> str:
    more = len(items) - MAX_NAMED
    return "; ".join(items[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
