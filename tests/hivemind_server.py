"""hivemind's own server, unmodified, as a program: three small experts in a mesh's DHT, until stdin is closed.

    python tests/hivemind_server.py WEIGHTS.npz ADDRESS...

It writes its weights to a file and then one line of JSON to stdout. A process of its own, because hivemind forks one
for its DHT, for each pool of tasks and for its connections.
"""

import json
import sys
from pathlib import Path

import hivemind
import numpy as np
import torch
from hivemind.moe import ModuleBackend, Server
from hivemind.proto.runtime_pb2 import CompressionType
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from torch import nn

INPUTS, OUTPUTS = 24, 5


class Sum(nn.Module):
    """An expert with two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.layer(first + second)


def main(weights_path: Path, addresses: list[str]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, OUTPUTS))
    modules = {"strange.3.5": plain, "strange.3.6": plain, "strange.4.0": Sum()}
    np.savez(weights_path, **{name: tensor.numpy() for name, tensor in plain.state_dict().items()})
    dht = hivemind.DHT(initial_peers=addresses, client_mode=True, start=True)
    backends = {}
    for cell, module in modules.items():
        compression = CompressionType.FLOAT16 if cell == "strange.3.6" else CompressionType.NONE
        tensor = BatchTensorDescriptor(INPUTS, dtype=torch.float32, compression=compression)
        outputs = BatchTensorDescriptor(OUTPUTS, dtype=torch.float32, compression=compression)
        backends[cell] = ModuleBackend(
            name=cell,
            module=module,
            args_schema=(tensor, tensor) if isinstance(module, Sum) else (tensor,),
            outputs_schema=outputs,
            max_batch_size=2**20,
        )
    server = Server(dht, backends, num_connection_handlers=1, update_period=1.0, expiration=30.0, device="cpu")
    server.run_in_background(await_ready=True)
    try:
        print(json.dumps({"peer_id": dht.peer_id.to_base58(), "cells": list(modules)}), flush=True)
        sys.stdin.read()
    finally:
        server.shutdown()
        server.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
