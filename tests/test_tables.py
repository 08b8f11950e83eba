"""The tables that come through PyPI: their rows are the package's numbers, and their study files can be replayed."""

import csv

import pytest

from objectives.tables import TASKS, write
from tuner.methods import method
from tuner.replay import Replay
from tuner.studyfile import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for name in TASKS:
        write(name, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "count"), [("protein", 3456), ("naval", 3456), ("phoneme", 50000), ("segment", 50000)]
)
def test_every_setting_and_replicate_is_a_row(folder, name, count):
    with open(folder / f"{name}.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    assert (
        len({tuple(row[key] for key in row if key not in ("loss", "weights")) for row in rows})
        * (4 if TASKS[name].regression else 5)
        == count
    )


@pytest.mark.parametrize("name", ["protein", "naval"])
def test_the_number_of_weights_is_the_package_s(name):
    table = TASKS[name]._table()
    params = {key: values[0] for key, values in table.search_space.items()}
    for width in (16, 128, 512):
        at = {**params, "n_units_1": width, "n_units_2": width}
        key = "".join(str(choices.index(at[name])) for name, choices in table.search_space.items())
        assert set(table._dataset[key]["model_size"]) == {TASKS[name].weights(width)}


def test_losses_are_those_the_package_hands_out(folder):
    table = TASKS["segment"]._table()
    with open(folder / "segment.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["width"] == "64"]
    for row in rows[::501]:
        named = {"alpha": "weight_decay", "learning_rate_init": "lr", "batch_size": "batch_size", "width": "width"}
        kinds = table.param_types
        params = {key: kinds[key](row[column]) for key, column in named.items()}
        same = [1 - float(r["loss"]) for r in rows if all(r[c] == row[c] for c in named.values())]
        said = table({**params, "depth": 2})["val_acc"]
        assert min(abs(said - accuracy) for accuracy in same) < 1e-12


def test_a_table_with_categories_and_replicates_is_replayed(folder):
    entry = Replay.of(read(folder / "protein.toml")).run(method("transfer"), 0, 0.013)
    assert len(entry["trace"]) >= 5
    assert entry["recommendation"]["schedule"] in ("cosine", "const")
    assert set(entry["covered"]) == {"lr", "batch_size", "dropout", "schedule"}
