"""What earlier runs have measured stays in the document, with its commit, until it is measured anew."""

import dataclasses
import json

import pytest

from lae_fast.checkpoint import CheckpointError
from lae_fast.experiments.autoencoders import TrainedAutoencoder
from lae_fast.experiments.quality import Quality
from lae_fast.experiments.record import Measured, Record

LAE = TrainedAutoencoder("lae", 2, 0, 1, 1e-3)
QUALITY = Quality(LAE, 4)
NAME = "report.jsonl"
MEASURED = Measured({"mse": 0.25, "epochs": float("inf")}, {"commit": "abc"})


def record(folder, digest="of the data"):
    return Record(folder / NAME, digest)


def written(folder, recipe=QUALITY, digest="of the data"):
    found = record(folder, digest)
    found.add(recipe, MEASURED)
    found.write()
    return found.path


def test_what_was_written_is_found_by_recipe_and_data(tmp_path):
    written(tmp_path)
    assert record(tmp_path).find(QUALITY) == MEASURED
    assert record(tmp_path).find(dataclasses.replace(QUALITY, n_images=5)) is None
    assert record(tmp_path).find(Quality(dataclasses.replace(LAE, seed=1), 4)) is None
    assert record(tmp_path, "of others").find(QUALITY) is None


def test_other_lines_stay_and_a_line_is_of_the_last_measurement(tmp_path):
    written(tmp_path, digest="of others")
    written(tmp_path)
    again = record(tmp_path)
    again.add(QUALITY, later := Measured({"mse": 0.5}, {"commit": "def"}))
    again.write()
    assert len((tmp_path / NAME).read_text().splitlines()) == 2
    assert record(tmp_path).find(QUALITY) == later
    assert record(tmp_path, "of others").find(QUALITY) == MEASURED


def test_measurements_of_other_data_alone_are_those_of_another_document(tmp_path):
    assert not record(tmp_path).is_of_other_data()  # nothing is there
    written(tmp_path, digest="of others")
    assert record(tmp_path).is_of_other_data()
    written(tmp_path)
    assert not record(tmp_path).is_of_other_data()


def test_a_field_that_a_recipe_has_got_since_is_at_its_default(tmp_path):
    path = written(tmp_path)
    line = json.loads(path.read_text())
    del line["recipe"]["autoencoder"]["decisions"], line["recipe"]["n_chains"]
    path.write_text(json.dumps(line) + "\n")
    assert record(tmp_path).find(QUALITY) == MEASURED
    assert record(tmp_path).find(dataclasses.replace(QUALITY, n_chains=9)) is None
    assert record(tmp_path).find(Quality(dataclasses.replace(LAE, decisions="datapoint"), 4)) is None


def test_a_kind_that_is_no_more_stays_in_the_file(tmp_path):
    path = written(tmp_path)
    line = json.loads(path.read_text())
    line["recipe"]["kind"] = "Gone"
    path.write_text(json.dumps(line) + "\n")
    written(tmp_path)
    assert sum('"Gone"' in text for text in path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "7",
        "{}",
        '{"recipe": {}, "data": ""}',
        '{"recipe": {"kind": "Quality"}, "data": "", "metrics": 3}',
        '{"recipe": {"kind": "Quality"}, "data": "", "metrics": {"mse": "high"}, "provenance": {}}',
        '{"recipe": {"kind": "Quality"}, "data": "", "metrics": {}, "provenance": {"commit": 5}}',
    ],
)
def test_a_damaged_line_is_named(text, tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(CheckpointError, match=r"report\.jsonl is damaged: line 2 is "):
        record(tmp_path)


def test_what_another_process_has_written_since_stays(tmp_path):
    first, second = record(tmp_path), record(tmp_path)
    first.add(QUALITY, MEASURED)
    second.add(LAE, MEASURED)
    first.write()
    second.write()
    assert record(tmp_path).find(QUALITY) == record(tmp_path).find(LAE) == MEASURED
