"""The config.toml that `init` writes: the few settings that people change first."""

import json
from collections.abc import Sequence

__all__ = ["starter_config"]


def starter_config(*, name: str | None, join: Sequence[str]) -> str:
    """A commented TOML document.

    Args:
        name: The node's name; None leaves the line commented out, so that the host's name is taken.
        join: Multiaddresses of peers to start from; none leaves the line commented out.
    """
    return _TEMPLATE.format(
        name=f"name = {_quoted(name)}" if name is not None else '# name = "my-node"',
        join=f"join = [{', '.join(map(_quoted, join))}]"
        if join
        else '# join = ["/ip4/203.0.113.7/tcp/31337/p2p/Qm..."]',
    )


_TEMPLATE = """\
# Settings of this ModuleMesh node. A line with a leading # shows a default or an example.
# `meshnode config show` lists all settings, `meshnode config validate` checks what is written here.
# MESHNODE_SECTION__KEY in the environment overrides a line here, an option of `meshnode run` overrides both.

[node]
# What other peers see. By default the name of this machine.
{name}

[net]
# The address and port to listen on; port 0 takes any free one. Peers on other machines need "0.0.0.0".
# listen = "127.0.0.1"
# port = 0
# Peers to start from. One that is away costs nothing: it is tried again until it answers.
{join}
# The most that is sent of weights and other blobs. By default there is no limit.
# up = "2MB/s"

[compute]
# "auto", "cpu" or "cuda:0". With require_gpu the node refuses to start on the CPU.
# device = "auto"
# require_gpu = false

[train]
# A folder of task files (*.npz), learned in the order of their names. Images and labels never leave this
# machine; the experts learned from them and each class's feature statistics do.
# data = "/path/to/tasks"

[place]
# Host some experts of other nodes, so that none is lost with the node that has it: so many, of so many MiB in all.
# room = 16
# room_mib = 256

[api]
# The local HTTP API; port 0 takes any free one.
# listen = "127.0.0.1:0"

[mqtt]
# Tell an MQTT broker how the node is. A password goes into a file of its own that password_file names.
# enabled = false
# url = "mqtt://127.0.0.1:1883"

[log]
# "debug", "info", "warning" or "error"; as "text" for people, "json" for programs, or by where it goes: "auto".
# level = "info"
# format = "auto"
"""


def _quoted(text: str) -> str:
    # A JSON string of ASCII is a TOML basic string, but for DEL, which JSON leaves bare.
    return json.dumps(text).replace("\x7f", "\\u007f")
