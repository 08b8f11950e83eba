"""What the person can correct, apart from what is ours to mend."""

from numbers import Real


class BadInput(ValueError):
    """Something given breaks a law: one line with the law, the value and the remedy; exit status 2."""


def is_number(value: object) -> bool:
    """A real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)
