"""Recorded traces: what the columns mean, and one clear line for what is wrong, with the line's number."""

import math

import pytest

from edgekit.errors import StorageError, UsageError
from edgekit.router.simulation import World, read_trace
from edgekit.router.simulation._baselines import CloudOnly, LocalOnly

ALL = 1_000_000


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "trace.csv"
        path.write_text(text)
        return path

    return write


def test_all_columns(write):
    path = write(
        "arrival_s,device_ms,cloud_ms,round_trip_ms,payload_bytes,sla_ms,uplink_mbit_s\n"
        "5.0,10,8,30,12000,50,8\n"
        "5.5,12,,30,12000,60,8\n"
        "\n"
        "6.0,11,9,20,6000,70,16\n"
    )
    trace = read_trace(path, ALL)
    assert trace.name == "trace"
    assert trace.arrive_s == [0.0, 0.5, 1.0]
    assert trace.sla_s == pytest.approx([0.05, 0.06, 0.07])
    assert [trace.uplink.at(time) for time in (0.2, 1.0)] == [1e6, 2e6]
    cloud = World(trace, CloudOnly(1, 1)).run()
    assert cloud.answered_s[0] == pytest.approx(0.012 + 0.030 + 0.008)
    assert math.isnan(cloud.answered_s[1])  # the cloud did not answer this one
    assert cloud.answered_s[2] == pytest.approx(1.0 + 0.003 + 0.020 + 0.009)
    device = World(trace, LocalOnly(1, 1)).run()
    assert device.answered_s == pytest.approx([0.010, 0.512, 1.011])


def test_the_two_needed_columns_alone(write):
    trace = read_trace(write("device_ms, arrival_s\n10,0\n20,0.1\n"), ALL)
    assert not trace.endpoints
    assert trace.sla_s == pytest.approx([0.1, 0.1])
    assert trace.bench_s == pytest.approx([0.01, 0.02])


def test_only_the_first_requests(write):
    assert len(read_trace(write("arrival_s,device_ms\n0,1\n1,1\n2,1\n"), 2)) == 2


WRONG = {
    "empty": ("", "trace.csv:1: no column arrival_s"),
    "no request": ("arrival_s,device_ms\n", "trace.csv: no request; expected a header and at least one line below it"),
    "missing": ("arrival_s,cloud_ms\n0,1\n", "trace.csv:1: no column device_ms; expected arrival_s, device_ms and of cloud_ms"),
    "unknown": ("arrival_s,device_ms,colour\n0,1,2\n", "trace.csv:1: column colour; expected"),
    "twice": ("arrival_s,device_ms,device_ms\n0,1,2\n", "trace.csv:1: a column twice"),
    "short line": ("arrival_s,device_ms\n0,1\n2\n", "trace.csv:3: 1 cells; expected 2, as the header has"),
    "no number": ("arrival_s,device_ms\n0,1\n1,fast\n", "trace.csv:3: device_ms 'fast'; expected a number, more than 0"),
    "not a number": ("arrival_s,device_ms\n0,nan\n", "trace.csv:2: device_ms 'nan'"),
    "infinite": ("arrival_s,device_ms\n0,inf\n", "trace.csv:2: device_ms 'inf'"),
    "negative": ("arrival_s,device_ms,payload_bytes\n0,1,-5\n", "trace.csv:2: payload_bytes '-5'; expected a number, 0 or more"),
    "no time": ("arrival_s,device_ms\n0,0\n", "trace.csv:2: device_ms '0'; expected a number, more than 0"),
    "empty cell": ("arrival_s,device_ms\n0,\n", "trace.csv:2: device_ms ''"),
    "order": ("arrival_s,device_ms\n1,1\n0.5,1\n", "trace.csv:3: arrival_s 0.5 after 1; expected arrivals in order; sort the file"),
    "quotes": ('arrival_s,device_ms\n"0,1\n', "not a CSV file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_line(write, name):
    text, words = WRONG[name]
    with pytest.raises(UsageError) as found:
        read_trace(write(text), ALL)
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        read_trace(tmp_path / "none.csv", ALL)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a CSV file"):
        read_trace(tmp_path / "binary", ALL)
