"""Ways in which a new expert can begin, each from the same old one, buffer and random initialisation.

- `mapped`: as the project carries an expert over. `mapped_without_refit` leaves out what is fitted on the buffer.
- `random_units`, with and without the fit: the same with importance drawn at random, so that what is left out of a
  narrower layer, or doubled in a wider one, is arbitrary. Incoming and outgoing weights still belong together.
- `random_permutation`: `mapped_without_refit` with the incoming weights of each hidden layer's units shuffled, and the
  outgoing ones left. The same numbers, in the same layers, of units that do not belong together.
- `scratch`: the random initialisation.
- `retrained`: the same, but learns from the reference CNN and not from the old expert.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from bench_preservation_data import Items, Part
from torch import Tensor, nn

from experts.architectures.base import Architecture
from experts.generators import torch_generator
from experts.preservation import transfer as transfer_module
from experts.preservation.chain import Chain
from experts.preservation.reading import chain_of, write_chain
from experts.preservation.transfer import Source, TransferConfig, Transferred, transfer

__all__ = ["BUFFER", "CONTROLS", "Case", "MAIN", "SIDES", "carried", "start"]

BUFFER = 2000
"""Items that a transfer sees, unless something else is said."""


class Case(NamedTuple):
    """An old expert, and what it is carried over on."""

    architecture: Architecture
    module: nn.Module
    items: Items
    seed: int

    def buffer(self, size: int = BUFFER) -> Part:
        """Drawn from the pool; a larger one begins with the smaller one's."""
        generator = torch_generator(self.seed, "buffer")
        return self.items.pool.of(torch.randperm(len(self.items.pool.columns_N), generator=generator)[:size])


def carried(
    case: Case, architecture: Architecture, config: TransferConfig | None = None, *, buffer: int = BUFFER
) -> Transferred:
    """The old expert in another architecture."""
    classes, items = case.items.classes, case.buffer(buffer)
    return transfer(
        Source.of(case.architecture, case.module, classes),
        architecture,
        classes,
        items.features_ND,
        items.columns_N,
        config or TransferConfig(),
        seed=_uid(case),
        generator=torch_generator(case.seed, "transfer"),
    )


def start(side: str, case: Case, architecture: Architecture) -> nn.Module:
    """A new expert, as one of `SIDES` begins."""
    return SIDES[side](case, architecture)


def _mapped(case: Case, architecture: Architecture) -> nn.Module:
    return carried(case, architecture).module


def _without_refit(case: Case, architecture: Architecture) -> nn.Module:
    return carried(case, architecture, TransferConfig(refit=False)).module


def _random_units(case: Case, architecture: Architecture) -> nn.Module:
    with _scores_drawn(case.seed):
        return _without_refit(case, architecture)


def _random_units_refit(case: Case, architecture: Architecture) -> nn.Module:
    with _scores_drawn(case.seed):
        return _mapped(case, architecture)


def _random_permutation(case: Case, architecture: Architecture) -> nn.Module:
    module = _without_refit(case, architecture)
    chain = chain_of(architecture, module)
    generator = torch_generator(case.seed, "permutation")
    with torch.no_grad():
        for stage in chain.hidden:
            order_U = torch.randperm(stage.units, generator=generator)
            for parameter in stage.parameters():
                parameter.copy_(parameter[order_U])
    write_chain(chain, architecture, module)
    return module


def _scratch(case: Case, architecture: Architecture) -> nn.Module:
    return architecture.build(_uid(case))


SIDES: Mapping[str, Callable[[Case, Architecture], nn.Module]] = {
    "mapped": _mapped,
    "mapped_without_refit": _without_refit,
    "random_units": _random_units,
    "random_units_refit": _random_units_refit,
    "random_permutation": _random_permutation,
    "scratch": _scratch,
    "retrained": _scratch,
}

MAIN = ("mapped", "scratch", "retrained")
"""Those that learn until they come up to the old expert."""

CONTROLS = tuple(side for side in SIDES if side not in MAIN)


def _uid(case: Case) -> str:
    return f"new-{case.seed}"


@contextmanager
def _scores_drawn(seed: int) -> Iterator[None]:
    generator = torch_generator(seed, "random scores")

    def drawn(chain: Chain, *_: Any, **__: Any) -> list[Tensor]:
        return [torch.rand(stage.units, dtype=torch.float64, generator=generator) for stage in chain.stages]

    # In their place and not beside them: all that follows from the scores is to be as it is.
    with mock.patch.object(transfer_module, "unit_scores", drawn):
        yield
