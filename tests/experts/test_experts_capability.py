"""Capabilities: a teacher's classes under the mesh's names."""

import math
from pathlib import Path

import equations
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.distillation import LogitCache, align_logits, data_digest
from experts.errors import MalformedCapability, ShapeMismatch, UnknownClasses
from experts.teachers.base import Teacher
from experts.teachers.capability import Capability, read_mapping

CLASSES = ("beagle", "cab", "husky", "siamese", "tabby")
OF = {"beagle": "dog", "husky": "dog", "tabby": "cat", "siamese": "cat"}
IMAGES = torch.zeros(3, 1, 2, 2)


class Fixed:
    """A teacher that says what a test gives it."""

    def __init__(self, logits: torch.Tensor, classes: tuple[str, ...] = CLASSES, digest: str = "0" * 64) -> None:
        self.given = logits
        self.classes = classes
        self.digest = digest

    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.given[: len(images_BCHW)]


def scores(seed: int = 0, classes: int = 5, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(3, classes, generator=torch.Generator().manual_seed(seed))


def test_classes_are_the_sorted_names_of_the_mesh() -> None:
    teacher: Teacher = Capability(Fixed(scores()), OF)
    assert teacher.classes == ("cat", "dog")
    assert teacher.logits(IMAGES).shape == (3, 2)
    assert teacher.logits(IMAGES[:0]).shape == (0, 2)


@settings(deadline=None)  # a shared machine is slow at times
@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=6).filter(any), st.integers(0, 999))
def test_probabilities_of_classes_with_one_name_add(names: list[str], seed: int) -> None:
    theirs = tuple(f"t{index}" for index in range(len(names)))
    of = {name: ours for name, ours in zip(theirs, names, strict=True) if ours}
    logits = scores(seed, len(names)).double()
    capability = Capability(Fixed(logits, theirs), of)
    p = capability.logits(IMAGES).softmax(dim=1)
    for row, expected in zip(p.tolist(), logits.tolist(), strict=True):
        assert row == pytest.approx(
            equations.capability_probabilities(expected, theirs, of, capability.classes), abs=1e-12
        )


def test_a_renaming_keeps_the_logits() -> None:
    logits = scores()
    capability = Capability(Fixed(logits), {"husky": "b", "cab": "a"})
    assert torch.equal(capability.logits(IMAGES), logits[:, [1, 2]])


@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_logits_of_any_size_neither_overflow_nor_vanish(size: float) -> None:
    merged = Capability(Fixed(torch.full((3, 5), size)), OF).logits(IMAGES)
    torch.testing.assert_close(merged, torch.full((3, 2), size + math.log(2)))


def test_a_class_that_the_teacher_rules_out_stays_ruled_out() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]]).expand(3, 5)
    merged = Capability(Fixed(logits), OF).logits(IMAGES)
    assert torch.equal(merged, torch.tensor([[1.0, -math.inf]]).expand(3, 2))


def test_one_class_of_all_is_certain() -> None:
    capability = Capability(Fixed(scores()), dict.fromkeys(CLASSES, "thing"))
    torch.testing.assert_close(capability.logits(IMAGES).softmax(dim=1), torch.ones(3, 1))


def test_a_capability_without_a_class_in_common_with_an_expert_has_no_say() -> None:
    capability = Capability(Fixed(scores()), OF)
    assert torch.isneginf(align_logits(capability.logits(IMAGES), capability.classes, ("boat", "car"))).all()


def test_unknown_names_are_told_all_at_once() -> None:
    with pytest.raises(UnknownClasses) as caught:
        Capability(Fixed(scores()), OF | {"yak": "cow", "gnu": "cow"})
    assert caught.value.classes == ("gnu", "yak")
    with pytest.raises(UnknownClasses) as caught:
        Capability(Fixed(scores()), OF, mesh_classes=["cat", "bird"])
    assert caught.value.classes == ("dog",)
    assert caught.value.known == ("bird", "cat")
    Capability(Fixed(scores()), OF, mesh_classes=["cat", "dog", "bird"])


@pytest.mark.parametrize("of", [{}, {"cab": ""}])
def test_a_mapping_of_nothing_is_refused(of: dict[str, str]) -> None:
    with pytest.raises(MalformedCapability):
        Capability(Fixed(scores()), of)


def test_a_teacher_that_answers_for_other_classes_than_it_names_is_refused() -> None:
    with pytest.raises(ShapeMismatch):
        Capability(Fixed(scores(classes=4)), OF).logits(IMAGES)


def test_the_digest_covers_teacher_and_mapping_and_not_the_order_it_was_written_in() -> None:
    teacher, other = Fixed(scores()), Fixed(scores(), digest="1" * 64)
    digest = Capability(teacher, OF).digest
    assert len(digest) == 64
    assert digest == Capability(teacher, dict(reversed(OF.items()))).digest
    assert len({digest, Capability(other, OF).digest, Capability(teacher, OF | {"tabby": "tiger"}).digest}) == 3


def test_cached_logits_are_not_those_of_another_mapping(tmp_path: Path) -> None:
    cache = LogitCache(tmp_path, max_bytes=10**6)
    answers = []
    for of in (OF, OF | {"cab": "dog"}):
        capability = Capability(Fixed(scores()), of)
        for _ in range(2):
            found = cache.logits(capability, IMAGES, data_digest=data_digest(IMAGES), teacher_digest=capability.digest)
            answers.append(found.outcome)
        assert torch.equal(found.logits_NK, capability.logits(IMAGES))
    assert answers == ["absent", "hit", "absent", "hit"]


def test_a_mapping_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pets.toml"
    path.write_text('[classes]\nbeagle = "dog"\n"Egyptian cat" = "cat"\n"größer" = "chat"\n', encoding="utf-8")
    assert read_mapping(path) == {"beagle": "dog", "Egyptian cat": "cat", "größer": "chat"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[classes]",
        "[classes]\na = 1",
        '[classes]\na = ""',
        '[classes]\na = ["b"]',
        '[classes.a]\nb = "c"',
        'classes = "a"',
        '[classes]\na = "b"\na = "c"',
        '[classes]\na = "b"\n[other]\n',
        "not toml",
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pets.toml"
    path.write_text(text)
    with pytest.raises(MalformedCapability) as caught:
        read_mapping(path)
    assert caught.value.source == str(path)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pets.toml"
    with pytest.raises(MalformedCapability):
        read_mapping(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(MalformedCapability):
        read_mapping(path)
