"""hivemind's own clients, unmodified, as a program: what they find in a mesh's DHT and what its experts answer them.

    python tests/hivemind_client.py REQUEST.npz ANSWER.npz

A process of its own, because hivemind forks: its DHT is a child of this one, and would be one of the test's threads and
locks. The request names addresses and cells as JSON beside its arrays; the answer is arrays, and JSON likewise.
"""

import json
import sys
from pathlib import Path
from typing import Any

import hivemind
import numpy as np
import torch
from hivemind.moe import RemoteMixtureOfExperts, get_experts

GRID = (16, 256, 256)


def main(request_path: Path, answer_path: Path) -> None:
    torch.set_num_threads(1)
    request = np.load(request_path)
    asked = json.loads(str(request["asked"]))
    dht = hivemind.DHT(initial_peers=asked["addresses"], client_mode=True, start=True)
    try:
        answer: dict[str, Any] = {}
        infos = experts_one_by_one(dht, asked["cells"], request, answer)
        chosen = mixture(dht, asked["prefix"], request, answer)
    finally:
        dht.shutdown()
    np.savez(answer_path, told=json.dumps({"infos": infos, "chosen": chosen}), **answer)


def experts_one_by_one(
    dht: hivemind.DHT, cells: list[str], request: Any, answer: dict[str, Any]
) -> list[dict[str, Any] | None]:
    """`RemoteExpert` for each cell: outputs and input gradients, at once and in parts; what `rpc_info` tells."""
    told: list[dict[str, Any] | None] = []
    for number, expert in enumerate(get_experts(dht, cells)):
        if expert is None:
            told.append(None)
            continue
        for kind in ("small", "large"):
            inputs = torch.from_numpy(request[f"{kind}_inputs"]).requires_grad_()
            outputs = expert(inputs)
            outputs.backward(torch.from_numpy(request[f"{kind}_grads"]))
            assert inputs.grad is not None
            answer[f"{kind}_outputs_{number}"] = outputs.detach().numpy()
            answer[f"{kind}_gradients_{number}"] = inputs.grad.numpy()
        told.append({"peer_id": expert.peer_id.to_base58()} | {key: expert.info[key] for key in ("expert", "classes")})
    return told


def mixture(dht: hivemind.DHT, prefix: str, request: Any, answer: dict[str, Any]) -> list[list[str]]:
    """`RemoteMixtureOfExperts` over the whole grid, by beam search; the cells it chose for each row."""
    torch.manual_seed(0)
    inputs = torch.from_numpy(request["mixture_inputs"]).requires_grad_()
    layer = RemoteMixtureOfExperts(
        in_features=inputs.shape[1],
        grid_size=GRID,
        dht=dht,
        uid_prefix=f"{prefix}.",
        k_best=4,
        k_min=4,
        backward_k_min=4,
        forward_timeout=20.0,
        backward_timeout=20.0,
        detect_anomalies=True,
    )
    scores = layer.proj(inputs).split_with_sizes(GRID, dim=-1)
    chosen = layer.beam_search.batch_find_best_experts([part.detach().numpy() for part in scores], 4)
    outputs = layer(inputs)
    outputs.backward(torch.from_numpy(request["mixture_grads"]))
    assert inputs.grad is not None
    assert layer.proj.weight.grad is not None
    answer["mixture_outputs"] = outputs.detach().numpy()
    answer["mixture_gradients"] = inputs.grad.numpy()
    answer["mixture_weight"] = layer.proj.weight.detach().numpy()
    answer["mixture_bias"] = layer.proj.bias.detach().numpy()
    answer["mixture_weight_gradients"] = layer.proj.weight.grad.numpy()
    return [[expert.uid for expert in row] for row in chosen]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
