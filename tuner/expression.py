"""Expressions over the columns of a table, as a study file writes them: parsed to a small tree, never run as code.

    columns, numbers, "texts", + - * / **, comparisons (chained too), `in` a list, and, or, not, parentheses

Arithmetic is that of floats: a division by zero, an overflow or a root of a negative number is NaN. What needs a
missing value is missing itself.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuner.errors import BadInput
from tuner.space import suggestion

Cell = float | str | bool | None  # of a table; None: missing
Row = Mapping[str, Cell]

LONGEST = 1000  # characters

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: lambda one, other: _same(one, other),
    ast.NotEq: lambda one, other: not _same(one, other),
    ast.In: lambda one, many: any(_same(one, other) for other in many),
    ast.NotIn: lambda one, many: not any(_same(one, other) for other in many),
}
_SIGNS: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}


class _Missing(Exception):
    """A value that is not there: no part of an expression that needs it has one."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression. `columns`: those it reads."""

    text: str
    columns: frozenset[str]
    _value: Callable[[Row], Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return parse, (self.text, sorted(self.columns))

    def __call__(self, row: Row) -> Cell:
        """Its value for a row; None where that is missing.

        Raises:
            BadInput: a text where a number is needed, or the reverse.
        """
        try:
            value: Cell = self._value(row)
        except _Missing:
            return None
        except TypeError:
            used = ", ".join(f"{name} = {row[name]!r}" for name in sorted(self.columns))
            raise BadInput(f"{self.text!r} mixes texts and numbers at {used}; compare like with like") from None
        return value


def parse(text: str, columns: Iterable[str]) -> Expression:
    """The expression a text says; the bare name of a column is that column, whatever characters it has.

    Raises:
        BadInput: something outside the grammar, or a name that no column has.
    """
    columns = list(columns)
    if text in columns:
        return Expression(text, frozenset([text]), _column(text))
    if len(text) > LONGEST:
        raise BadInput(f"an expression may have {LONGEST} characters, got {len(text)}; shorten it")
    used: set[str] = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # 1in [1]
            body = ast.parse(text.strip(), mode="eval").body
        value = _compiled(body, text, columns, used)
    except BadInput:
        raise
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise BadInput(
            f"{text!r} is no column and no expression of columns, numbers, texts in quotes, + - * / **, comparisons, "
            "in [..], and, or, not; correct it"
        ) from None
    return Expression(text, frozenset(used), value)


def _column(name: str) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        if (cell := row[name]) is None:
            raise _Missing
        return cell

    return value


def _compiled(node: ast.expr, text: str, columns: list[str], used: set[str]) -> Callable[[Row], Any]:
    def inner(part: ast.expr) -> Callable[[Row], Any]:
        return _compiled(part, text, columns, used)

    match node:
        case ast.Name(id=name):
            if name not in columns:
                raise BadInput(f"{text!r}: the table has no column {name!r}; {suggestion(name, columns)}")
            used.add(name)
            return _column(name)
        case ast.Constant(value=bool() | str() as constant):
            return lambda row: constant
        case ast.Constant(value=int() | float() as number):
            number = float(number)
            return lambda row: number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _binary(_arithmetic(_ARITHMETIC[type(op)]), inner(left), inner(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
            sign, of = _SIGNS[type(op)], inner(operand)
            return lambda row: sign(of(row) if isinstance(op, ast.Not) else _real(of(row)))
        case ast.BoolOp(op=op, values=values):
            parts = [inner(value) for value in values]
            every = isinstance(op, ast.And)
            return lambda row: (all if every else any)(part(row) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            sides = [inner(left), *(_side(op, other, inner) for op, other in zip(ops, others, strict=True))]
            tests = [
                _binary(_COMPARISONS[type(op)], one, other)
                for op, one, other in zip(ops, sides, sides[1:], strict=False)
            ]
            return lambda row: all(test(row) for test in tests)
    raise SyntaxError  # outside the grammar


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one. A cell of a CSV file that reads as a number or a truth value is also its own text."""
    if isinstance(one, str) == isinstance(other, str):
        return bool(one == other)
    text, cell = (one, other) if isinstance(one, str) else (other, one)
    if isinstance(cell, bool):
        return text.lower() == str(cell).lower()
    if not hasattr(cell, "text"):
        raise TypeError
    return bool(text == cell.text)


def _real(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError
    return float(value)


def _arithmetic(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def of_floats(one: Any, other: Any) -> float:
        try:
            value = apply(_real(one), _real(other))
        except (ZeroDivisionError, OverflowError):
            return math.nan
        return math.nan if isinstance(value, complex) else float(value)

    return of_floats


def _side(op: ast.cmpop, node: ast.expr, inner: Callable[[ast.expr], Callable[[Row], Any]]) -> Callable[[Row], Any]:
    """The right side of a comparison; of `in`, a list."""
    if not isinstance(op, (ast.In, ast.NotIn)):
        return inner(node)
    if not isinstance(node, (ast.List, ast.Tuple)):
        raise SyntaxError
    members = [inner(member) for member in node.elts]
    return lambda row: [member(row) for member in members]


def _binary(
    apply: Callable[[Any, Any], Any], left: Callable[[Row], Any], right: Callable[[Row], Any]
) -> Callable[[Row], Any]:
    return lambda row: apply(left(row), right(row))
