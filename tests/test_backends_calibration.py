import json

import pytest

from backends import calibration
from backends.calibration import Measured


@pytest.fixture
def file(tmp_path):
    return tmp_path / "home" / calibration.FILE


def test_what_is_noted_is_read_and_other_kinds_know_nothing_of_it(file):
    calibration.add(file, "a", memory_factor=1.25, rate_share=0.5)
    assert calibration.read(file, "a") == Measured(memory_factor=1.25, rate_share=0.5)
    assert calibration.read(file, "b") == calibration.read(None, "a") == Measured()


def test_the_median_of_the_last_five_counts(file):
    for factor in (0.6, 0.6, 0.6, 1.1, 1.2, 1.9, 1.2, 1.3):
        calibration.add(file, "a", memory_factor=factor)
    assert calibration.read(file, "a").memory_factor == 1.2
    assert len(json.loads(file.read_text())["kinds"]["a"]["memory_factor"]) == 5


@pytest.mark.parametrize(("measured", "taken"), [(40.0, 2.0), (0.0, 0.5)])
def test_a_correction_is_bounded(file, measured, taken):
    calibration.add(file, "a", memory_factor=measured)
    assert calibration.read(file, "a").memory_factor == taken


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"null",
        b'{"format": 2, "kinds": {"a": {"memory_factor": [1.5]}}}',
        b'{"format": 1, "kinds": 3}',
        b'{"format": 1, "kinds": {"a": 3}}',
        b'{"format": 1, "kinds": {"a": {"memory_factor": "much"}}}',
        b'{"format": 1, "kinds": {"a": {"memory_factor": [null, true, "x", NaN, Infinity]}}}',
        b'{"format": 1, "kinds": {"a": {"memory_factor": [1' + b"0" * 400 + b"]}}}",
        b"[" * 100_000,
    ],
)
def test_rubbish_counts_as_nothing_and_is_replaced(file, rubbish):
    file.parent.mkdir()
    file.write_bytes(rubbish)
    assert calibration.read(file, "a") == Measured()
    calibration.add(file, "a", memory_factor=1.5)
    assert calibration.read(file, "a").memory_factor == 1.5


def test_what_is_no_number_is_not_noted(file):
    calibration.add(file, "a", memory_factor=float("nan"), rate_share=float("inf"))
    assert calibration.read(file, "a") == Measured()


def test_a_place_that_cannot_be_written_loses_the_measurement_and_nothing_else(tmp_path):
    (tmp_path / "home").write_text("a file")
    calibration.add(tmp_path / "home" / calibration.FILE, "a", memory_factor=1.5)
    assert calibration.read(tmp_path / "home" / calibration.FILE, "a") == Measured()


def test_nothing_is_left_beside_the_file_and_the_oldest_kinds_go(file):
    for number in range(105):
        calibration.add(file, f"kind {number}", memory_factor=1.0)
    assert [path.name for path in file.parent.iterdir()] == [calibration.FILE]
    assert calibration.read(file, "kind 0") == Measured()
    assert calibration.read(file, "kind 104").memory_factor == 1.0
