"""Options by layer, by cases worked by hand."""

import pytest

from espalier.errors import InvalidArgument
from espalier.options import Lookup, check_bits, check_density, parse

LENET = [
    (("conv1", "conv1.weight"), "conv"),
    (("conv2", "conv2.weight"), "conv"),
    (("fc1", "fc1.weight"), "linear"),
    (("fc3", "fc3.weight"), "linear"),
    (("embed", "embed.weight"), "embedding"),
]


def test_one_value_is_for_all():
    assert Lookup(0.5).resolve(LENET) == [0.5] * 5


def test_kind_overrides_global_and_pattern_overrides_kind_in_any_order():
    value = {"fc3*": 6, "linear": 5, "*": 4, "conv": 8}
    assert Lookup(value, "bits").resolve(LENET) == [8, 8, 5, 6, 4]


def test_later_pattern_overrides_earlier():
    assert Lookup({"conv*": 8, "*2": 3}, "bits").resolve(LENET) == [8, 3, None, None, None]
    assert Lookup({"*2": 3, "conv*": 8}, "bits").resolve(LENET) == [8, 8, None, None, None]


def test_any_of_the_names_matches_and_case_counts():
    assert Lookup({"fc1.weight": 1, "fc3": 2}, "bits").resolve(LENET) == [None, None, 1, 2, None]
    with pytest.raises(InvalidArgument, match="FC1"):
        Lookup({"FC1": 1}, "bits").resolve(LENET)


def test_none_leaves_alone():
    assert Lookup({"*": 8, "fc*": None}, "bits").resolve(LENET) == [8, 8, None, None, 8]


@pytest.mark.parametrize("key", ["fc9*", "other"])
def test_a_key_that_matches_nothing_is_an_error_with_the_names(key):
    with pytest.raises(
        InvalidArgument, match=r"matches nothing; there are conv1 \(conv\)"
    ) as error:
        Lookup({key: 0.5}).resolve(LENET)
    assert key in str(error.value)
    assert "embed (embedding)" in str(error.value)


def test_a_long_list_of_names_is_cut():
    many = [((f"layer{i}",), "linear") for i in range(100)]
    with pytest.raises(InvalidArgument, match="and 88 more"):
        Lookup({"x": 1}).resolve(many)


def test_no_targets_and_a_global_value():
    assert Lookup(8, "bits").resolve([]) == []


def test_empty_mapping_and_bad_keys():
    with pytest.raises(InvalidArgument, match="empty mapping"):
        Lookup({})
    with pytest.raises(InvalidArgument, match="non-empty string"):
        Lookup({"": 1})


@pytest.mark.parametrize("value", [1.0, 1, 0.001])
def test_density_in_range(value):
    assert check_density(value) == value


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.001, float("nan"), float("inf"), True, "0.5"])
def test_density_out_of_range(value):
    with pytest.raises(InvalidArgument, match=r"density must be a number in \(0, 1\]"):
        Lookup(value, check=check_density)


@pytest.mark.parametrize("value", [0, 17, -1, 8.0, 2.5, True, "8"])
def test_bits_out_of_range(value):
    with pytest.raises(InvalidArgument, match="bits must be an integer from 1 to 16"):
        Lookup(value, "bits", check_bits)
    with pytest.raises(InvalidArgument, match=r"'fc\*': bits must be"):
        Lookup({"fc*": value}, "bits", check_bits)


def test_bits_in_range():
    assert [check_bits(b) for b in (1, 16)] == [1, 16]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("8", int, 8),
        ("0.1", float, 0.1),
        ("conv=8,linear=5,fc3*=6", int, {"conv": 8, "linear": 5, "fc3*": 6}),
        (" 8 , conv = 5 ", int, {"*": 8, "conv": 5}),
        ("a=1,b=2,a=3", int, {"b": 2, "a": 3}),
        ("none", int, {"*": None}),
        ("*=0.5,fc1=none", float, {"*": 0.5, "fc1": None}),
    ],
)
def test_parse(text, kind, value):
    got = parse(text, kind)
    assert got == value
    if isinstance(value, dict):
        assert list(got) == list(value)


@pytest.mark.parametrize("text", ["", "conv=", "=8", "conv=8,", "conv=x", "8.5", "nan"])
def test_parse_refuses(text):
    with pytest.raises(InvalidArgument, match="bits"):
        parse(text, int, "bits")


def test_parse_refuses_what_is_not_finite():
    with pytest.raises(InvalidArgument, match="finite"):
        parse("nan", float, "density")
