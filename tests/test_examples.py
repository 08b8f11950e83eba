"""Claims about benchmarks/examples: each runs as it stands, in a process of its own, and ends with an answer."""

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDS = {
    "trainer": ("transformers", "no transformers: install the extra transformers"),
    "lightning_fit": ("lightning", "no lightning: install the extra lightning"),
    "on_cluster": ("distributed", "no distributed: install the extra cluster"),
    "ax_study": ("ax", "no ax-platform: install the extra ax"),
    "ray_study": ("ray", "no Ray: install the extra ray"),
}


def test_every_example_is_run_here():
    assert set(NEEDS) == {path.stem for path in (ROOT / "benchmarks" / "examples").glob("[a-z]*.py")}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", list(NEEDS))
def test_an_example_answers(name, tmp_path):
    package, why = NEEDS[name]
    if find_spec(package) is None:
        pytest.skip(why)
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"benchmarks.examples.{name}"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **quiet}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert all(value > 0 for value in answer.values())
    assert "lr" in answer
