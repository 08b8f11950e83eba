"""What the person can correct, apart from what is ours to mend."""


class BadInput(ValueError):
    """Something given breaks a law: one line with the law, the value and the remedy; exit status 2."""
