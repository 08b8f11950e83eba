"""Waiting for what other processes do."""

import time

PATIENCE = 60.0  # seconds, for what takes a few at most on an idle machine


def until(condition, seconds=PATIENCE):
    """What the condition becomes, polled until it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return value
