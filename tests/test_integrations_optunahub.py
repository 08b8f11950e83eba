"""Claims about the folder that OptunaHub's registry takes: it loads without a network, and runs as its page says."""

import re
import tomllib
import warnings
from pathlib import Path

import optuna
import pytest
import yaml

import tuner
from tuner.integrations.optuna import TransferSampler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    optunahub = pytest.importorskip("optunahub", reason="no optunahub", exc_type=ImportError)

ROOT = Path(__file__).parents[1]
REGISTRY = Path(tuner.__file__).parent / "integrations" / "optunahub" / "package"
FOLDER = REGISTRY / "samplers" / "transfer"

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_sampler_is_the_package_s_own():
    module = optunahub.load_local_module("samplers/transfer", registry_root=str(REGISTRY))
    assert module.TransferSampler is TransferSampler


def test_the_page_s_example_runs_from_the_local_folder(capsys):
    [code] = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    remote = 'load_module(package="samplers/transfer")'
    local = f"load_local_module('samplers/transfer', registry_root={str(REGISTRY)!r})"
    assert remote in code
    said: dict = {}
    exec(code.replace(remote, local), said)
    assert isinstance(said["study"].sampler, TransferSampler)
    assert [t.state.name for t in said["study"].trials] == ["COMPLETE"] * 8
    lr = float(re.search(r"'lr': ([\d.e-]+)", capsys.readouterr().out)[1])
    assert lr == pytest.approx(0.64 / 2048, rel=0.5)


def test_the_front_matter_is_what_the_registry_asks_for():
    _, head, _ = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    said = yaml.safe_load(head)
    assert set(said) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert all(isinstance(said[name], str) for name in ("author", "title", "description"))
    assert all(isinstance(text, str) for name in ("tags", "optuna_versions") for text in said[name])
    assert "sampler" in said["tags"]
    assert said["license"] == "MIT License"


def test_the_licence_is_the_package_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    licence = FOLDER / "LICENSE"
    assert licence.read_text(encoding="utf-8").startswith("MIT License\n")
    assert project["license"] == "MIT"
    assert [ROOT / name for name in project["license-files"]] == [licence]
