"""Experts that are carried over in tests: weights that mean something, features to look at them with."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.architectures.registry import architecture_from_config
from experts.preservation.transfer import Source, TransferConfig, Transferred, transfer

CLASSES = ("ant", "bee", "cat")
D = 18
"""Features: a map of 2 x 3 x 3."""

KINDS: Mapping[str, Mapping[str, object]] = {
    "linear": {"feature_dim": D},
    "mlp": {"feature_dim": D, "hidden": 7},
    "adapter": {"feature_dim": D, "bottleneck": 4},
    "conv": {"channels": 2, "height": 3, "width": 3, "filters": 6},
    "deep": {"feature_dim": D, "hidden": 6, "layers": 2, "activation": "gelu", "norm": "layer"},
}


def form(kind: str, *, num_classes: int = len(CLASSES), **settings: object) -> Architecture:
    """An architecture of a kind; what is not given is as in `KINDS`."""
    scale = 2.0 if kind == "conv" else 0.3
    config = {"input_scale": scale, **KINDS[kind], **settings, "kind": kind, "num_classes": num_classes}
    return architecture_from_config(config)


def learned(architecture: Architecture, seed: int = 0) -> nn.Module:
    """A module with large random weights, none of them as it began."""
    generator = torch.Generator().manual_seed(seed)
    module = architecture.build("learned")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def features(n: int = 300, seed: int = 1) -> Tensor:
    """``(n, D)``."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def carried(
    old: Architecture,
    module: nn.Module,
    new: Architecture,
    config: TransferConfig | None = None,
    *,
    classes: tuple[str, ...] = CLASSES,
    seed: int = 2,
) -> Transferred:
    """The expert in another architecture, its buffer labelled by itself."""
    buffer = features()
    with torch.no_grad():
        labels = module(buffer).argmax(dim=1)
    return transfer(
        Source.of(old, module, CLASSES),
        new,
        classes,
        buffer,
        labels,
        config or TransferConfig(),
        seed="new",
        generator=torch.Generator().manual_seed(seed),
    )
