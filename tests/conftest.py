"""A study small enough to run in a test: a bowl whose optimum is known, and a study file in a folder of its own."""

import signal
import sys

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background: what Ctrl-C does is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)

BOWL = '''
import math, os, time
from pathlib import Path
from tuner.space import Float, SearchSpace

class Bowl:
    """loss = 1 + ln(lr / 0.01)^2 / 10 + 4 / width; each start and end is a line of the log."""

    space = SearchSpace({"lr": Float(1e-4, 1e-1, log=True)})

    def __init__(self, sleep=0.0, log=None):
        self.sleep, self.log = sleep, log and Path(log)

    def cost(self, params, scale):
        return float(scale["width"]) ** 2

    def __call__(self, params, scale, seed):
        self.say("start")
        time.sleep(self.sleep)
        self.say("end")
        return 1 + math.log(params["lr"] / 1e-2) ** 2 / 10 + 4 / scale["width"]

    def say(self, word):
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{word} {os.getpid()}\\n")

class Broken(Bowl):
    def __call__(self, params, scale, seed):
        raise RuntimeError("no data here")

class Diverging(Bowl):
    def __call__(self, params, scale, seed):
        return math.inf

class Needy:
    def __init__(self):
        raise FileNotFoundError("no data")

number = 3
'''

STUDY = """
[study]
name = "bowl"

[objective]
call = "bowl:Bowl"

[scale]
target = { width = 256 }
proxies = { width = [32, 64] }

[budget]
target_runs = 0.046875
"""


@pytest.fixture
def bowl(tmp_path, monkeypatch):
    """Writes the study file, some of its text replaced; the module `bowl` lies beside it, for this test only."""
    (tmp_path / "bowl.py").write_text(BOWL)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # so that what a command leaves behind is its own
    monkeypatch.delitem(sys.modules, "bowl", raising=False)

    def write(*replacements, more=""):
        text = STUDY
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "study.toml"
        path.write_text(text + more)
        return path

    yield write
    sys.modules.pop("bowl", None)
