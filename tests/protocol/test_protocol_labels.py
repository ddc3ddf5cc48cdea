"""Class names with a domain or task in front: made, taken apart, refused."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.errors import MalformedIdentifier
from protocol.labels import class_of, context_of, contexts_of, label_in
from protocol.limits import MAX_CLASS_NAME_CHARS

names = st.text(min_size=1, max_size=40)


@given(names, names)
def test_a_name_is_taken_apart_into_what_it_was_made_of(context: str, name: str) -> None:
    assume("/" not in context and len(context) + len(name) < MAX_CLASS_NAME_CHARS)
    label = label_in(context, name)
    assert (context_of(label), class_of(label)) == (context, name)


def test_classes_may_have_a_separator_of_their_own() -> None:
    label = label_in("photo", "T-shirt/top")
    assert (context_of(label), class_of(label)) == ("photo", "T-shirt/top")
    assert contexts_of([label, "sketch/bag", "sketch/T-shirt/top"]) == ("photo", "sketch")


def test_a_name_without_a_context_has_none() -> None:
    assert (context_of("bag"), class_of("bag")) == ("", "bag")


@pytest.mark.parametrize(("context", "name"), [("", "bag"), ("a/b", "bag"), ("c" * 32, "n" * 32)])
def test_what_could_not_be_taken_apart_or_is_too_long_is_refused(context: str, name: str) -> None:
    with pytest.raises(MalformedIdentifier, match="class name"):
        label_in(context, name)


def test_the_longest_name_is_as_long_as_any_class_may_be() -> None:
    assert len(label_in("c" * 31, "n" * 32)) == MAX_CLASS_NAME_CHARS
