"""Built-in architectures for tests: one small one of each kind, and strategies that draw any."""

from hypothesis import strategies as st

from experts.architectures.adapter import AdapterArchitecture
from experts.architectures.conv import ConvArchitecture
from experts.architectures.deep import DeepArchitecture
from experts.architectures.linear import LinearArchitecture
from experts.architectures.mlp import MlpArchitecture

BuiltIn = AdapterArchitecture | ConvArchitecture | DeepArchitecture | LinearArchitecture | MlpArchitecture

SMALL: dict[str, BuiltIn] = {
    "adapter": AdapterArchitecture(feature_dim=12, bottleneck=2, num_classes=2),
    "conv": ConvArchitecture(channels=2, height=3, width=2, filters=3, num_classes=2),
    "deep": DeepArchitecture(feature_dim=12, hidden=4, layers=2, activation="gelu", norm="layer", num_classes=2),
    "linear": LinearArchitecture(feature_dim=12, num_classes=2),
    "mlp": MlpArchitecture(feature_dim=12, hidden=3, num_classes=2),
}
"""All take 12 features and answer for two classes."""

_scales = st.floats(0.01, 10)
_classes = st.integers(1, 5)

mlps = st.builds(
    MlpArchitecture,
    feature_dim=st.integers(1, 40),
    hidden=st.integers(1, 9),
    num_classes=_classes,
    input_scale=_scales,
)
linears = st.builds(LinearArchitecture, feature_dim=st.integers(1, 40), num_classes=_classes, input_scale=_scales)
adapters = st.builds(
    AdapterArchitecture,
    feature_dim=st.integers(1, 40),
    bottleneck=st.integers(1, 9),
    num_classes=_classes,
    input_scale=_scales,
)
convs = st.builds(
    ConvArchitecture,
    channels=st.integers(1, 4),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    filters=st.integers(1, 4),
    num_classes=_classes,
    input_scale=_scales,
)
deeps = st.builds(
    DeepArchitecture,
    feature_dim=st.integers(1, 40),
    hidden=st.integers(1, 9),
    layers=st.integers(1, 4),
    activation=st.sampled_from(["relu", "gelu", "tanh", "silu"]),
    norm=st.sampled_from(["none", "layer"]),
    num_classes=_classes,
    input_scale=_scales,
)
architectures: st.SearchStrategy[BuiltIn] = st.one_of(adapters, convs, deeps, linears, mlps)
