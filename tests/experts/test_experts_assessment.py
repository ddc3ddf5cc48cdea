"""Assessment: each class of a task goes to exactly one expert, the same on every node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.continual.assessment import Plan, assign_classes
from experts.errors import NothingToLearnFrom

names = st.sets(st.sampled_from("abcdefgh"), min_size=1)


def test_known_classes_update_their_experts_and_the_rest_spawns_one() -> None:
    plan = assign_classes(["d", "b", "a", "e"], {"p": ("a", "b", "c"), "q": ("x",), "r": ("e",)})
    assert plan == Plan(update={"p": ("a", "b"), "r": ("e",)}, spawn=("d",))


def test_with_no_experts_everything_spawns_and_with_all_known_nothing_does() -> None:
    assert assign_classes(["b", "a", "a"], {}) == Plan(update={}, spawn=("a", "b"))
    assert assign_classes(["a"], {"p": ("a",)}).spawn == ()


def test_a_class_of_several_experts_goes_where_most_of_the_task_is_known() -> None:
    assert assign_classes(["b", "c"], {"p": ("a", "b"), "q": ("b", "c")}).update == {"q": ("b", "c")}
    assert assign_classes(["a"], {"q": ("a",), "p": ("a",)}).update == {"p": ("a",)}


@given(task=names, experts=st.dictionaries(st.sampled_from("pqrs"), names))
def test_a_plan_partitions_the_task(task: set[str], experts: dict[str, set[str]]) -> None:
    plan = assign_classes(task, experts)
    assigned = [name for classes in plan.update.values() for name in classes] + list(plan.spawn)
    assert sorted(assigned) == sorted(task)
    assert all(classes and set(classes) <= experts[uid] for uid, classes in plan.update.items())
    assert not set(plan.spawn) & set().union(*experts.values())
    assert assign_classes(sorted(task), dict(reversed(experts.items()))) == plan


def test_a_task_without_classes_is_refused() -> None:
    with pytest.raises(NothingToLearnFrom):
        assign_classes([], {"p": ("a",)})
