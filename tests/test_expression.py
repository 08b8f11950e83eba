"""Expressions: what they say is what Python says of the same words, and nothing else is parsed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.expression import parse

COLUMNS = ["params", "tokens", "loss", "kind", "ok", "val loss"]
ROW = {"params": 6e7, "tokens": 2e9, "loss": 2.5, "kind": "mup", "ok": True, "val loss": 3.0}


@pytest.mark.parametrize(
    "text",
    [
        "6 * params * tokens",
        "params ** 0.5 / -tokens + 1",
        "loss > 2 and not ok",
        "1 < loss <= 2.5 or kind == 'sp'",
        "kind in ['sp', \"mup\"]",
        "kind not in ['sp'] and (loss != 2.5 or ok)",
        "params / (tokens - 2e9 + 1)",
    ],
)
def test_it_says_what_python_says(text):
    names = {name: value for name, value in ROW.items() if name.isidentifier()}
    assert parse(text, COLUMNS)(ROW) == eval(text, {"__builtins__": {}}, names)


@given(
    st.recursive(
        st.sampled_from(["params", "loss", "3", "0.5"]),
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        max_leaves=12,
    )
)
def test_arithmetic_is_that_of_floats(text):
    said = parse(text, COLUMNS)(ROW)
    try:
        expected = eval(text, {"__builtins__": {}}, {name: ROW[name] for name in ("params", "loss")})
    except (ZeroDivisionError, OverflowError):
        expected = math.nan
    assert said == pytest.approx(expected, nan_ok=True, rel=1e-12)


def test_the_bare_name_of_a_column_is_that_column():
    assert parse("val loss", COLUMNS)(ROW) == 3.0
    assert parse("val loss", COLUMNS).columns == {"val loss"}
    assert parse("loss + params", COLUMNS).columns == {"loss", "params"}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "loss.__class__",
        "params[0]",
        "[loss for loss in []]",
        "lambda: 1",
        "loss if ok else 1",
        "loss := 3",
        "loss // 2",
        "loss % 2",
        "~params",
        "loss | params",
        "kind in loss",
        "f'{loss}'",
        "b'x'",
        "1j",
        "...",
        "None",
        "loss; params",
        "loss +",
        "",
        "\0",
        "(" * 300 + "1" + ")" * 300,
        "-" * 900 + "1",
    ],
)
def test_nothing_else_is_parsed(text):
    with pytest.raises(ValueError, match="is no column and no expression") as refused:
        parse(text, COLUMNS)
    assert "\n" not in str(refused.value)


def test_a_wrong_name_gets_the_nearest_column():
    with pytest.raises(ValueError, match="no column 'token'; did you mean 'tokens'"):
        parse("6 * params * token", COLUMNS)


def test_a_very_long_expression_is_refused():
    with pytest.raises(ValueError, match="1000 characters, got 2001"):
        parse("1" + "+1" * 1000, COLUMNS)


@pytest.mark.parametrize("text", ["loss / (loss - loss)", "9 ** 9 ** 9", "(0 - loss) ** 0.5"])
def test_arithmetic_without_a_value_is_nan(text):
    assert math.isnan(parse(text, COLUMNS)(ROW))


def test_what_needs_a_missing_value_is_missing():
    row = {**ROW, "loss": None}
    assert parse("loss", COLUMNS)(row) is None
    assert parse("loss > 2", COLUMNS)(row) is None
    assert parse("params > 2 or loss > 2", COLUMNS)(row) is True


def test_texts_and_numbers_do_not_mix():
    with pytest.raises(ValueError, match="'kind > 3' mixes texts and numbers at kind = 'mup'"):
        parse("kind > 3", COLUMNS)(ROW)
