"""Conditions are bounded and checked, and one set of conditions has one spelling."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.retrieval.filters import (
    MAX_ATTRIBUTES,
    MAX_VALUE_CHARS,
    MAX_VALUES,
    Filters,
    Range,
    active,
    without,
)

WORDS = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=4)
NUMBERS = st.integers(-3, 3)
RANGES = st.builds(lambda a, b: {"ge": min(a, b), "le": max(a, b)}, NUMBERS, NUMBERS)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "category": WORDS,
        "brand": WORDS,
        "price": RANGES,
        "rating": st.just({}) | RANGES,
        "in_stock": st.none() | st.booleans(),
        "attributes": st.dictionaries(st.sampled_from(["Colour", "a.b", "price"]), WORDS),
    },
)


def test_what_is_asked_has_a_name_each() -> None:
    filters = Filters.model_validate(
        {
            "attributes": {"Size": ["M"], "Colour": ["red"], "Cut": []},
            "in_stock": False,
            "price": {"ge": 0},
            "rating": {},
            "category": ["boots"],
        }
    )
    assert active(filters) == [
        "category",
        "price",
        "in_stock",
        "attributes.Colour",
        "attributes.Size",
    ]
    assert active(Filters()) == []


@given(FIELDS)
def test_without_takes_out_one_condition_and_no_other(fields: dict[str, Any]) -> None:
    filters = Filters.model_validate(fields)
    for name in active(filters):
        fewer = without(filters, name)
        assert active(fewer) == [other for other in active(filters) if other != name]
        assert without(fewer, name) == fewer
    assert filters == Filters.model_validate(fields)  # untouched
    for name in active(filters):
        filters = without(filters, name)
    assert filters == Filters()


@pytest.mark.parametrize("name", ["colour", "attributes", "attributes.Cut", ""])
def test_without_an_unknown_name_changes_nothing(name: str) -> None:
    filters = Filters(brand=("acme",), attributes={"Colour": ("red",)})
    assert without(filters, name) == filters


@given(FIELDS, st.randoms(use_true_random=False))
def test_other_spellings_of_the_same_conditions_are_equal(
    fields: dict[str, Any], dice: random.Random
) -> None:
    other = dict(fields)
    for name in ("category", "brand"):
        if name in fields:
            other[name] = [*fields[name], *fields[name]]
            dice.shuffle(other[name])
    if "attributes" in fields:
        other["attributes"] = {**dict(reversed(fields["attributes"].items())), "empty": []}
    one, two = Filters.model_validate(fields), Filters.model_validate(other)
    assert one == two
    assert hash(one) == hash(two)


@given(FIELDS)
def test_conditions_come_back_from_json(fields: dict[str, Any]) -> None:
    filters = Filters.model_validate(fields)
    assert Filters.model_validate_json(filters.model_dump_json()) == filters


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"price": {"ge": 3, "le": 2.5}}, "ge 3 is above le 2.5; ge must be at most le"),
        ({"price": {"ge": float("nan")}}, "finite"),
        ({"rating": {"le": float("inf")}}, "finite"),
        ({"price": {"gt": 1}}, "Extra inputs"),
        ({"colour": ["red"]}, "Extra inputs"),
        ({"brand": "acme"}, "valid tuple"),
        ({"brand": ["x" * (MAX_VALUE_CHARS + 1)]}, f"at most {MAX_VALUE_CHARS} characters"),
        ({"brand": [str(i) for i in range(MAX_VALUES + 1)]}, f"at most {MAX_VALUES} items"),
        (
            {"attributes": {str(i): ["x"] for i in range(MAX_ATTRIBUTES + 1)}},
            f"at most {MAX_ATTRIBUTES} items",
        ),
        ({"attributes": {"k" * (MAX_VALUE_CHARS + 1): ["x"]}}, f"at most {MAX_VALUE_CHARS}"),
        ({"attributes": {"k": ["x" * (MAX_VALUE_CHARS + 1)]}}, f"at most {MAX_VALUE_CHARS}"),
    ],
)
def test_what_is_no_condition_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Filters.model_validate(fields)


def test_conditions_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Filters().brand = ("acme",)  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        Range().ge = 1.0  # type: ignore[misc]


def test_equal_bounds_are_one_number() -> None:
    assert Range(ge=2, le=2).bounded
    assert not Range().bounded
