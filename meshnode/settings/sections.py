"""The sections of a node's settings: each setting with its default, its range and the reason for both.

Spans carry their unit: as they are written, ``refresh = "5s"``; as attributes, in their name, ``refresh_s``. What is
said of a setting here is what people read in docs/config.md, in the schema and in editors.
"""

import platform
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import multiaddr
import multiaddr.exceptions
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from meshnode.settings.units import parse_duration_s, parse_rate
from protocol.addresses import parse_address
from protocol.errors import MalformedAddress, MalformedIdentifier
from protocol.identifiers import MeshId, parse_digest
from protocol.limits import MAX_NAME_CHARS, MAX_RECORD_TTL_S, MAX_ROUND_MEMBERS
from protocol.mixing import MixingMethod

__all__ = [
    "ApiSection",
    "AverageSection",
    "ComputeSection",
    "LogSection",
    "MeshSection",
    "MqttSection",
    "NetSection",
    "NodeSection",
    "PlaceSection",
    "PreserveSection",
    "PrivacySection",
    "ServeSection",
    "TeacherSetting",
    "TrainSection",
]

_DAY_S = 86_400.0
_DEVICE = r"^(auto|cpu|cuda:[0-9]{1,3})$"


def _seconds(value: object) -> object:
    return parse_duration_s(value) if isinstance(value, str) else value


def _bytes_per_second(value: object) -> object:
    return parse_rate(value) if isinstance(value, str) else value


def _listed(value: object) -> object:
    """A list may be given as text with commas, the only form the environment has."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _node_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value) or len(value) > MAX_NAME_CHARS:
        raise ValueError(f"a name has 1 to {MAX_NAME_CHARS} letters, digits, dots, dashes and underscores")
    return value


def _default_name() -> str:
    host = platform.node().partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", host).strip("-_")[:MAX_NAME_CHARS] or "node"


def _host(value: str) -> str:
    ip_address(value)
    return value


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("HOST:PORT is expected, such as 127.0.0.1:0")
    ip_address(host.removeprefix("[").removesuffix("]") if host.startswith("[") else host)
    return value


def _peer_address(value: str) -> str:
    try:
        return str(parse_address(value))
    except MalformedAddress as exc:
        raise ValueError(exc.message) from exc


def _own_address(value: str) -> str:
    try:
        return str(multiaddr.Multiaddr(value))
    except (multiaddr.exceptions.Error, ValueError, LookupError) as exc:
        raise ValueError("a multiaddress is expected, such as /ip4/203.0.113.7/tcp/31337") from exc


def _mesh_id(value: str) -> MeshId:
    try:
        return MeshId(parse_digest(value))
    except MalformedIdentifier as exc:
        raise ValueError(exc.message) from exc


def _device(value: str) -> str:
    if not re.fullmatch(_DEVICE, value):
        raise ValueError("auto, cpu or cuda:N is expected")
    return value


def _not_blank(value: object) -> object:
    # As a path it would be the current folder, which nobody means by it.
    if value == "":
        raise ValueError("a path is expected; leave the setting out to have none")
    return value


def _absolute_text(value: object) -> object:
    # Inside a list no place is known that a relative path could be taken from.
    if isinstance(value, str) and not value.startswith(("/", "~")):
        raise ValueError("an absolute path is expected")
    return Path(value).expanduser() if isinstance(value, str) else value


def _teacher(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _absolute(value: Path) -> Path:
    try:
        return value.expanduser().absolute()
    except RuntimeError as exc:
        raise ValueError(f"there is no such user as in {value}") from exc


def _broker_url(value: str) -> str:
    if "@" in value:
        raise ValueError("the name and password do not belong here: use mqtt.user and mqtt.password_file")
    try:
        url = urlsplit(value)
        is_address = url.port != 0 and bool(url.hostname) and url.path in ("", "/") and not (url.query or url.fragment)
    except ValueError:  # its text would quote what may be half a password
        is_address = False
    if not is_address or url.scheme not in ("mqtt", "mqtts"):
        raise ValueError("mqtt://HOST[:PORT] or mqtts://HOST[:PORT] is expected")
    return value


def _topic_prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", value):
        raise ValueError("letters, digits, dots, dashes, underscores, and slashes between them are expected")
    return value


Seconds = Annotated[float, Field(ge=0.001, le=_DAY_S), BeforeValidator(_seconds)]
Rate = Annotated[int, Field(ge=16_000, le=10**12), BeforeValidator(_bytes_per_second)]
RecordTtl = Annotated[float, Field(ge=0.001, le=MAX_RECORD_TTL_S), BeforeValidator(_seconds)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute_text)]
LocalPath = Annotated[Path, BeforeValidator(_not_blank), AfterValidator(_absolute)]
PeerAddresses = Annotated[tuple[Annotated[str, AfterValidator(_peer_address)], ...], BeforeValidator(_listed)]
OwnAddresses = Annotated[tuple[Annotated[str, AfterValidator(_own_address)], ...], BeforeValidator(_listed)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NodeSection(_Section):
    """Who this node is to people."""

    name: Annotated[str, AfterValidator(_node_name)] = Field(default_factory=_default_name)
    """Shown to other peers; need not be unique. The machine's name unless set."""


class NetSection(_Section):
    """How this node reaches its peers and they it."""

    listen: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    """IP address to listen on; ``0.0.0.0`` is every address of this machine. Loopback unless set: to be seen by other
    machines is a choice."""
    port: int = Field(default=0, ge=0, le=65535)
    """TCP port to listen on; 0 takes any that is free."""
    join: PeerAddresses = ()
    """Multiaddresses, with ``/p2p/<peer id>``, of peers to connect to; any one of them is enough."""
    announce: OwnAddresses = ()
    """Multiaddresses at which peers reach this node, where it listens on others (behind a router)."""
    refresh_s: Seconds = Field(default=5.0, alias="refresh")
    """How often the records of the mesh are read again, hence how late a change elsewhere is noticed. Shorter than
    ``record_ttl``."""
    record_ttl_s: RecordTtl = Field(default=60.0, alias="record_ttl")
    """A dead node is advertised for this long. Renewed at a third of it, so that two renewals may fail."""
    call_timeout_s: Seconds = Field(default=5.0, alias="call_timeout")
    """How long a peer may be silent in a call."""
    up_bytes_per_second: Rate | None = Field(default=None, alias="up")
    """The most that is sent in bulk: blobs (weights, trunks, statistics) and parts of averaging rounds, experts that
    have waited longest first. Answers and records are not held back. Unless set, there is no limit."""

    @model_validator(mode="after")
    def _records_are_read_before_they_expire(self) -> Self:
        if self.refresh_s >= self.record_ttl_s:
            raise ValueError("refresh must be shorter than record_ttl")
        return self


class MeshSection(_Section):
    """Which mesh this node belongs to."""

    id: Annotated[str, AfterValidator(_mesh_id)] | None = None
    """Digest of the mesh's spec. Unless set, this node joins the mesh of the first peer that has one."""


class ComputeSection(_Section):
    """What this node computes on."""

    device: Annotated[str, AfterValidator(_device)] = Field(default="auto", json_schema_extra={"pattern": _DEVICE})
    """``auto`` (a GPU if there is one), ``cpu`` or ``cuda:N``."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of one process's tensor operations. Unless set, one: experts and trunks are too small to gain from
    more, and a node is not alone on its machine."""
    require_gpu: bool = False
    """Fail rather than compute on the CPU; contradicts ``device = "cpu"``."""

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> Self:
        if self.require_gpu and self.device == "cpu":
            raise ValueError('require_gpu contradicts device = "cpu"')
        return self


def _teacher_table() -> dict[str, object]:
    """The schema of a teacher's table: pydantic would refer to one that stands elsewhere."""
    forms: dict[str, dict[str, object]] = {
        "name": {"type": "string", "minLength": 1},
        "weight": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000, "default": 1.0},
        "classes": {"type": "string"},
        "mapping": {"type": "string"},
    }
    properties = {
        name: {"description": (said.description or "").replace("``", "`"), **forms[name]}
        for name, said in TeacherSetting.model_fields.items()
    }
    return {"type": "object", "properties": properties, "required": ["name"], "additionalProperties": False}


class TeacherSetting(_Section):
    """A teacher by name."""

    name: str = Field(min_length=1, max_length=4096)
    """``file:/PATH.safetensors``, ``package:efficientnet-lite0``, ``timm:...``, ``torchvision:...`` or ``hf:...``."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How much it counts against the other teachers; the node's own has 1."""
    classes: AbsolutePath | None = None
    """File with the names of its columns, one a line; those it declares itself unless set."""
    mapping: AbsolutePath | None = None
    """TOML file whose table ``[classes]`` has the mesh's name for some of its classes; the same names unless set."""


Teachers = Annotated[
    tuple[
        Annotated[
            TeacherSetting,
            BeforeValidator(_teacher),
            WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _teacher_table()]}),
        ],
        ...,
    ],
    BeforeValidator(_listed),
]


class TrainSection(_Section):
    """How this node learns. Defaults are the measured ones of the small-expert setting."""

    enabled: bool = True
    """Learn from task files. A node that does not still serves and averages the experts it hosts."""
    data: LocalPath | None = None
    """Folder of task files (``*.npz``), learned in the order of their names. Without one there is nothing to
    learn from."""
    teacher_epochs: int = Field(default=12, ge=1, le=10_000)
    """Passes over a task's data when its teacher is trained."""
    steps: int = Field(default=1900, ge=1, le=10_000_000)
    """Distillation steps an expert takes for one task: about 15 passes over 4,000 images."""
    batch_size: int = Field(default=32, ge=1, le=65_536)
    """Images in one distillation step."""
    learning_rate: float = Field(default=0.05, gt=0, le=10)
    """Step size of stochastic gradient descent when an expert is distilled."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the labels in the loss; the rest is the teacher's."""
    temperature: float = Field(default=2.0, gt=0, le=1000)
    """T, by which logits are divided before the softmax: the higher, the more of what the teacher finds similar is
    learned."""
    gamma: float = Field(default=1.0, ge=0, le=1000)
    """Weight of the replay term, that keeps an updated expert at what it answered before."""
    min_gain: float = Field(default=0.005, ge=-1, le=1)
    """What a short trial of an expert on a task's images must bring for the expert to learn the task, as a share of
    accuracy on images that were held out. Less, and it is reused as it is: it neither trains nor travels. -1 tries
    nothing and always learns."""
    replay: Literal["balanced", "herding", "reservoir"] = "reservoir"
    """Which images of the past are kept to learn from again: a uniform sample of all, classes in equal number, or of
    each class those whose mean is closest to its own."""
    replay_samples: int = Field(default=200, ge=1, le=1_000_000)
    """How many at most; they never leave this machine."""
    replay_mib: int = Field(default=16, ge=1, le=1_000_000)
    """How many MiB of pixels at most. At least one image must have room."""
    own_teacher: bool = True
    """Train a teacher on each task's own data. Without it the named ``teachers`` teach alone."""
    teachers: Teachers = ()
    """Teachers by name, such as ``"package:efficientnet-lite0"``, or as a table
    ``{ name = "file:/x.safetensors", weight = 2.0, mapping = "/x.toml" }``. Each teaches the classes it knows by the
    mesh's names; none ever leaves this machine. While one cannot be loaded nothing is learned, as a task is learned
    once."""
    logit_cache_mib: int = Field(default=256, ge=1, le=1_000_000)
    """MiB of teachers' answers kept on disk, so that a task learned again after a crash asks none of them twice."""
    round_steps: int = Field(default=50, ge=1, le=10_000_000)
    """Least steps between two checkpoints: what a crash of the trainer can lose, and what averaging sees."""
    checkpoint_s: Seconds = Field(default=0.5, alias="checkpoint_every")
    """Least time between two checkpoints. Each is written to disk and advertised, which takes from the time for
    answers."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """What every random choice in training follows from, so that a run can be repeated."""

    @model_validator(mode="after")
    def _somebody_teaches(self) -> Self:
        if not self.own_teacher and not self.teachers:
            raise ValueError("own_teacher = false needs a teacher in teachers")
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) != len(names):
            raise ValueError("teachers names one of them twice")
        return self


class AverageSection(_Section):
    """How replicas of one expert become one again."""

    enabled: bool = True
    """Take part in averaging rounds. A node that does not keeps its replicas as it learned or pulled them."""
    every_s: Seconds = Field(default=10.0, alias="every")
    """Period of the rounds. All nodes of a mesh must have the same: it makes the round's number."""
    timeout_s: Seconds = Field(default=5.0, alias="timeout")
    """A round is given up after this; shorter than the period, or rounds would overlap. The first half is for all
    replicas, the rest for those that a silent one has left over."""
    method: MixingMethod = "group"
    """``group``: all replicas at once, up to ``group`` of them, and along a grid over several rounds beyond. In pairs:
    ``hypercube``, or at ``random``. The same at all nodes of a mesh."""
    group: int = Field(default=16, ge=2, le=MAX_ROUND_MEMBERS)
    """Most replicas that exchange with one another in a round. The same at all nodes of a mesh."""
    compression: Literal["none", "float16", "int8", "topk"] = "none"
    """How parameters travel. What a code cannot say is kept and sent later, so nothing is lost, only later. The same
    at all nodes of a mesh."""
    weighting: Literal["uniform", "samples"] = "uniform"
    """What a replica counts for: as much as any other, or by the samples its node learned. The same at all nodes of a
    mesh."""
    min_drift: float = Field(default=1e-4, ge=0, le=1)
    """A replica is averaged again once it differs by this much, as a share of its parameters' norm, from the last
    mean."""

    @model_validator(mode="after")
    def _rounds_do_not_overlap(self) -> Self:
        if self.timeout_s >= self.every_s:
            raise ValueError("timeout must be shorter than every")
        return self


class PreserveSection(_Section):
    """How experts here change to another form, and what must not be lost by it."""

    follow: bool = True
    """Take over the new form of a hosted expert that a peer has carried over, if hardly anything is lost here by it.
    Without this the old form stays, and goes on being served."""
    margin: float = Field(default=0.01, ge=0, le=1)
    """How far a new form's accuracy on held-out images may be below the old one's; more, and the old one stays."""


class PrivacySection(_Section):
    """What may be told of the samples that this node learns from."""

    min_samples: int = Field(default=10, ge=1, le=1_000_000)
    """A class of a task is shared in the router's statistics once so many images of it are new since they were last
    published; fewer wait. 1 turns this off."""
    epsilon: float | None = Field(default=None, gt=0, le=1000)
    """Publish statistics with Gaussian noise, each increment (epsilon, delta)-differentially private. Without a norm in
    the mesh's spec no statistics are published then. Unless set, there is no noise."""
    delta: float = Field(default=1e-6, gt=0, le=0.1)
    """Of the same; well below one over the number of samples."""


class PlaceSection(_Section):
    """How the mesh is kept from losing an expert with the node that holds it."""

    enabled: bool = True
    """Host experts of which the mesh has too few replicas, without being asked to, and drop those again of which it
    has too many. Without it this node hosts what it learns and what ``meshnode experts pull`` brings."""
    replicas: int = Field(default=2, ge=1, le=16)
    """How many replicas of each expert the mesh is to have. The same at all nodes of a mesh."""
    room: int = Field(default=16, ge=0, le=64)
    """Most experts that are hosted only for that reason; 0 takes in none. They are served like any other; in averaging
    they count for next to nothing, as they have learned nothing here."""
    room_mib: int = Field(default=256, ge=0, le=1_000_000)
    """Most MiB of parameters of these experts together; 0 takes in none."""
    handover_s: Annotated[float, Field(ge=0, le=_DAY_S), BeforeValidator(_seconds)] = Field(
        default=20.0, alias="handover"
    )
    """How long a node that stops goes on serving an expert that nobody else holds, until another node has taken it
    over; ``0s`` stops at once. With nobody who could, it does not wait. A second signal ends it in any case."""


class ServeSection(_Section):
    """How this node answers for the experts it hosts."""

    enabled: bool = True
    """Advertise the experts hosted here and answer peers that ask them. Without it they are not averaged either: no
    peer knows of them."""
    queue: int = Field(default=256, ge=1, le=100_000)
    """Requests that may wait for the processor; those beyond are told to come back later."""
    max_batch: int = Field(default=1024, ge=1, le=1_000_000)
    """Rows of waiting requests that one expert computes at once. A single request may have more."""
    thin_clients: bool = True
    """Send whole images through the mesh for clients that have neither its trunk nor its router. Without it only
    features are taken, by the experts hosted here."""
    timeout_s: Seconds = Field(default=5.0, alias="timeout")
    """Deadline of one routed answer, unless its caller names another."""
    hivemind: bool = False
    """Let hivemind's own clients find and ask these experts too, and keep declarations of its servers in the DHT for
    others. Those are unsigned, and nothing in the mesh is routed by them."""


class ApiSection(_Section):
    """The HTTP API for people and programs on this machine."""

    listen: Annotated[str, AfterValidator(_host_and_port)] = "127.0.0.1:0"
    """``HOST:PORT`` or ``[IPv6]:PORT``; port 0 takes any that is free, which ``daemon.json`` tells."""


class MqttSection(_Section):
    """What this node tells an MQTT broker, for dashboards and home automation; nothing is taken from it."""

    enabled: bool = False
    """Connect to the broker. One that is away costs nothing: it is tried again, and what it misses is counted."""
    url: Annotated[str, AfterValidator(_broker_url)] = "mqtt://127.0.0.1:1883"
    """``mqtt://HOST[:PORT]``, or ``mqtts://`` for TLS with the machine's certificate authorities."""
    user: str | None = None
    """Name to log in with; unless set, none is sent."""
    password_file: LocalPath | None = None
    """File whose first line is the password; nobody but its owner may be able to read it."""
    prefix: Annotated[str, AfterValidator(_topic_prefix)] = "modulemesh"
    """First part of every topic."""
    version: Literal["3.1.1", "5"] = "3.1.1"
    """Of the MQTT protocol."""
    every_s: Seconds = Field(default=10.0, alias="every")
    """Period of the telemetry topics."""

    @model_validator(mode="after")
    def _a_password_is_somebodys(self) -> Self:
        if self.password_file is not None and self.user is None:
            raise ValueError("password_file needs user: a password alone logs nobody in")
        return self


class LogSection(_Section):
    """What is told on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is shown; of libraries only warnings and errors are, unless this is ``debug``."""
    format: Literal["auto", "text", "json"] = "auto"
    """``text`` for people, ``json`` for programs, a line an event; ``auto`` is text on a terminal, else JSON."""
