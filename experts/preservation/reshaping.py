"""The old expert in the form of the new one, but for its widths: as many layers, of the same types.

What the new form can say exactly is exact: a further layer, a linear expert with hidden units, an adapter without its
correction. The rest is as near as it comes without learning: a layer less, a dense layer for a convolution or the other
way round, a normalisation more or less, another activation.

Legend: N items, D feature.
"""

from torch import Tensor

from experts.errors import NothingCorresponds
from experts.preservation.chain import Chain, Stage
from experts.preservation.depth import lengthened, shortened, with_correction, without_correction
from experts.preservation.recast import (
    with_activation,
    with_convolution,
    with_dense_input,
    with_input_scale,
    with_norm,
    without_norm,
)

__all__ = ["reshaped"]


def reshaped(old: Chain, new: Chain, features_ND: Tensor) -> Chain:
    """The old chain with the stages of the new one; each keeps the name of the old stage that it was, if it was one.

    Args:
        old: What is carried over.
        new: Of the new architecture.
        features_ND: On which units are looked at.

    Raises:
        NothingCorresponds: They read other features, or the new one's units are for something that no old one does.
    """
    if old.feature_dim != new.feature_dim:
        raise NothingCorresponds(f"the old expert reads {old.feature_dim} features, the new one {new.feature_dim}")
    old = with_input_scale(old, new.input_scale)
    if _corrects(old) and _corrects(new):
        return old
    chain = without_correction(old)
    if not (chain.stages[0].is_map and new.stages[0].is_map):
        chain = with_dense_input(chain)
    if _corrects(new):
        return with_correction(_plain(chain, features_ND), new.stages[0], new.stages[1])
    chain = _as_deep(chain, new, features_ND)
    if new.input_map is not None and not chain.stages[0].is_map:
        chain = with_convolution(chain, new.input_map, new.stages[0].weights.weight.shape[-1], features_ND)
    if chain.input_map != new.input_map:
        raise NothingCorresponds(f"the old expert reads a map {chain.input_map}, the new one {new.input_map}")
    for index, stage in enumerate(new.hidden):
        chain = _as_active(chain, index, stage, features_ND)
    return chain


def _as_deep(chain: Chain, new: Chain, features_ND: Tensor) -> Chain:
    """With as many stages as the new one."""
    if len(chain.stages) > len(new.stages):
        chain = _plain(chain, features_ND)
    while len(chain.stages) > len(new.stages):
        chain = shortened(chain, features_ND)
    while len(chain.stages) < len(new.stages):
        chain = lengthened(chain, new.stages[len(chain.stages) - 1].activation)
    return chain


def _as_active(chain: Chain, index: int, wanted: Stage, features_ND: Tensor) -> Chain:
    """With a hidden stage that is normalised or not, and active, as is wanted."""
    if wanted.norm is None:
        chain = without_norm(chain, index, features_ND)
    chain = with_activation(chain, index, wanted.activation, features_ND)
    return chain if wanted.norm is None else with_norm(chain, index, features_ND)


def _corrects(chain: Chain) -> bool:
    return any(stage.skip for stage in chain.stages)


def _plain(chain: Chain, features_ND: Tensor) -> Chain:
    """Dense and without normalisation: stages that can be put into one."""
    chain = with_dense_input(chain)
    for index in range(len(chain.hidden)):
        chain = without_norm(chain, index, features_ND)
    return chain
