"""Claims about the map between named values and the unit cube; the oracle is the value itself, sent there and back."""

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tuner.space import Categorical, Float, Int, SearchSpace, rounded, suggestion


@st.composite
def log_floats(draw):
    """A log range, and a value inside it of at most 12 significant digits."""
    low, ratio = draw(st.floats(1e-9, 1e9)), draw(st.floats(1.5, 1e9))
    value = float(f"{low * ratio ** draw(st.floats(0, 1)):.{draw(st.integers(1, 12))}g}")
    assume(low <= value <= low * ratio)
    return Float(low, low * ratio, log=True), value


@st.composite
def linear_floats(draw):
    """A linear range, and a value inside it with at most 12 digits from the first digit of the larger bound on."""
    low = draw(st.integers(-(10**12) + 1, 10**11))
    high = draw(st.integers(10**11 + 10**6, 10**12 - 1))
    value = draw(st.integers(low, high))
    power = draw(st.integers(-20, 0))
    low, value, high = (float(f"{k}e{power}") for k in (low, value, high))
    return Float(low, high), value


@given(log_floats())
def test_a_float_of_12_significant_digits_survives_a_log_range(case):
    dimension, value = case
    assert dimension.decode(dimension.encode(value)) == value


@given(linear_floats())
def test_a_float_of_12_digits_survives_a_linear_range(case):
    dimension, value = case
    assert dimension.decode(dimension.encode(value)) == value


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-0.3, 0.7), (-1e-3, 2e5), (0, 0.9)])
def test_zero_survives_a_linear_range_that_holds_it(low, high):
    dimension = Float(low, high)
    assert dimension.decode(dimension.encode(0.0)) == 0.0


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6), st.data())
def test_an_integer_survives_a_linear_range(low, length, data):
    value = data.draw(st.integers(low, low + length))
    dimension = Int(low, low + length)
    assert dimension.decode(dimension.encode(value)) == value
    assert type(dimension.decode(0.5)) is int


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.data())
def test_an_integer_survives_a_log_range(low, length, data):
    value = data.draw(st.integers(low, low + length))
    dimension = Int(low, low + length, log=True)
    assert dimension.decode(dimension.encode(value)) == value


@given(st.lists(st.sampled_from("abcdefg") | st.integers(2, 9) | st.booleans(), min_size=2, unique=True), st.data())
def test_a_choice_survives_and_keeps_its_type(choices, data):
    value = data.draw(st.sampled_from(choices))
    dimension = Categorical(choices)
    assert dimension.decode(dimension.encode(value)) == value
    assert type(dimension.decode(dimension.encode(value))) is type(value)


@pytest.mark.parametrize("dimension", [Int(1, 9), Int(1, 9, log=True), Int(-4, 4), Int(3, 4)], ids=repr)
def test_every_integer_of_a_range_and_no_other_is_reached(dimension):
    reached = {dimension.decode(i / 10_000) for i in range(10_001)}
    assert reached == set(range(int(dimension.low), int(dimension.high) + 1))


def test_integers_of_a_linear_range_have_equal_shares_of_the_cube():
    counts = [0] * 5
    for i in range(10_000):
        counts[Int(0, 4).decode((i + 0.5) / 10_000)] += 1
    assert counts == [2000] * 5


def test_choices_have_equal_shares_of_the_cube():
    decoded = [Categorical(("a", "b", "c", "d")).decode((i + 0.5) / 100) for i in range(100)]
    assert decoded == ["a"] * 25 + ["b"] * 25 + ["c"] * 25 + ["d"] * 25


@given(st.floats(-10, 10), st.sampled_from([Float(1e-4, 1e-1, log=True), Float(-2.5, 0.1), Int(2, 7, log=True)]))
def test_a_decoded_value_is_inside_its_range(u, dimension):
    assert dimension.low <= dimension.decode(u) <= dimension.high


def test_the_ends_of_the_cube_are_the_bounds_to_the_last_digit():
    low, high = 1 / 3, math.pi  # more digits than decode keeps
    for log in (False, True):
        assert (Float(low, high, log).decode(0.0), Float(low, high, log).decode(1.0)) == (low, high)


def test_the_middle_of_a_log_range_is_its_geometric_mean():
    assert Float(1e-4, 1e-2, log=True).decode(0.5) == 1e-3


def test_a_range_outside_itself_encodes_outside_the_cube_on_the_same_line():
    assert Float(1e-2, 1e-1, log=True).encode(1e-3) == pytest.approx(-1.0)
    assert Int(0, 9).encode(14.5) == pytest.approx(1.5)  # fractions are integers in base coordinates


def test_length_is_in_nats():
    assert Float(1.0, math.e**3, log=True).nats == pytest.approx(3.0)
    assert Int(1, 2, log=True).nats == pytest.approx(math.log(2.5 / 0.5))
    assert Float(0, 1).nats == 5.0


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_point_of_the_cube_decoded_is_a_fixed_point(u):
    space = SearchSpace(
        {
            "lr": Float(1e-4, 1e-1, log=True),
            "momentum": Float(0, 0.99),
            "depth": Int(1, 8),
            "act": Categorical(["x", "y", "z"]),
        }
    )
    params = space.decode(u)
    space.check(params)
    assert space.decode(space.encode(params)) == params


@pytest.mark.parametrize(
    ("make", "law", "value", "remedy"),
    [
        (lambda: Float(1.0, 1.0), "low must be below high", "low=1.0, high=1.0", "widen"),
        (lambda: Float(2, 1), "low must be below high", "low=2, high=1", "widen"),
        (lambda: Float(0, 1, log=True), "above zero", "low=0", "log=false"),
        (lambda: Float(-1, 1, log=True), "above zero", "low=-1", "log=false"),
        (lambda: Int(0, 5, log=True), "Int: a log range must stay above zero", "low=0", "log=false"),
        (lambda: Float(0, math.inf), "finite", "inf", "give low and high"),
        (lambda: Float(math.nan, 1), "finite", "nan", "give low and high"),
        (lambda: Float("0", 1), "finite numbers", "'0'", "give low and high"),
        (lambda: Float(False, 1), "finite numbers", "False", "give low and high"),
        (lambda: Int(0.5, 3), "bounds must be integers", "low=0.5", "use Float"),
        (lambda: Categorical(["a"]), "at least two", "['a']", "add one"),
        (lambda: Categorical(["a", "b", "a"]), "must differ", "'a', 'b', 'a'", "remove"),
        (lambda: Categorical([1, True]), "must differ", "[1, True]", "remove"),
        (lambda: SearchSpace({}), "at least one", "none", "add one"),
        (lambda: SearchSpace({"lr": (0, 1)}), "space.lr: must be Float, Int or Categorical", "(0, 1)", ""),
    ],
)
def test_a_bad_range_is_refused_with_law_value_and_remedy(make, law, value, remedy):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, (law, value, remedy)))):
        make()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lr": 0.1, "depth": 2, "act": "x", "lrr": 1}, "unknown hyperparameter 'lrr'; did you mean 'lr'?"),
        ({"lr": 0.1, "depth": 2}, "'act' is missing"),
        ({"lr": "0.1", "depth": 2, "act": "x"}, "params.lr: a value must be a finite number, got '0.1'"),
        ({"lr": math.nan, "depth": 2, "act": "x"}, "params.lr: a value must be a finite number, got nan"),
        ({"lr": 0.0, "depth": 2, "act": "x"}, "params.lr: a value of a log range must be above zero, got 0.0"),
        ({"lr": 0.1, "depth": True, "act": "x"}, "params.depth: a value must be a finite number, got True"),
        ({"lr": 0.1, "depth": 2, "act": "w"}, "params.act: a value must be one of ['x', 'y', 'z'], got 'w'"),
    ],
)
def test_params_that_are_not_of_the_space_are_refused_by_name(params, message):
    space = SearchSpace({"lr": Float(1e-4, 1e-1, log=True), "depth": Int(1, 8), "act": Categorical(["x", "y", "z"])})
    with pytest.raises(ValueError, match=re.escape(message)):
        space.encode(params)


def test_the_role_is_the_name_unless_one_is_given():
    space = SearchSpace({"lr": Float(0, 1), "wd": Float(0, 1, role="weight_decay")})
    assert (space.role("lr"), space.role("wd")) == ("lr", "weight_decay")


def test_rounding_keeps_12_significant_digits():
    assert rounded(1.23456789012345e-7) == 1.23456789012e-7
    assert rounded(123456789012.345) == 123456789012.0


def test_a_suggestion_names_the_nearest_word_or_all():
    assert suggestion("weigth_decay", ["lr", "weight_decay"]) == "did you mean 'weight_decay'?"
    assert suggestion("zzz", ["lr", "b"]) == "known: 'lr', 'b'"
