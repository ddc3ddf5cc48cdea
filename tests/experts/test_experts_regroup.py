"""Statistics of groups of classes: those that the samples would have had under the groups' names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import UnknownClasses
from experts.generators import torch_generator
from experts.router.regroup import regrouped
from experts.router.statistics import ClassStatistics


@settings(deadline=None, max_examples=50)
@given(labels=st.text("abcd", min_size=1, max_size=30), groups=st.lists(st.sampled_from("xyz"), min_size=4, max_size=4))
def test_groups_have_the_statistics_of_their_samples(labels: str, groups: list[str]) -> None:
    features = torch.randn(len(labels), 3, generator=torch_generator(len(labels), "rows")) + 5
    group_of = dict(zip("abcd", groups, strict=True))
    found = regrouped(ClassStatistics.from_features(features, list(labels), fingerprint="f" * 64), group_of)
    expected = ClassStatistics.from_features(features, [group_of[name] for name in labels], fingerprint="f" * 64)
    assert found.counts == expected.counts
    assert found.fingerprint == expected.fingerprint
    assert torch.allclose(found.stacked_means(), expected.stacked_means(), rtol=1e-12)
    assert torch.allclose(found.scatter, expected.scatter, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.scatter, found.scatter.T)


def test_a_class_without_a_group_is_refused() -> None:
    with pytest.raises(UnknownClasses):
        regrouped(ClassStatistics.from_features(torch.eye(2), ["a", "b"]), {"a": "x"})
