"""Instruments: deltas, bounded attribute sets, threads."""

import math
import threading

import pytest

from edgekit.errors import UsageError
from edgekit.telemetry import Meter, NoopMeter


def by_attributes(points):
    return {tuple(sorted(point.attributes.items())): point for point in points}


def test_each_count_is_in_exactly_one_collection():
    meter = Meter(start_ns=10)
    requests = meter.counter("requests", description="answered")
    latency = meter.histogram("latency")
    requests.add(2, {"tier": "edge"})
    latency.record(0.5)
    first = {point.name: point for point in meter.collect(20)}
    assert (first["requests"].value, first["requests"].start_ns, first["requests"].time_ns) == (2, 10, 20)
    assert (first["requests"].kind, first["requests"].unit, first["requests"].description) == ("sum", "1", "answered")
    assert first["latency"].histogram.count == 1
    assert first["latency"].unit == "s"
    assert meter.collect(30) == []
    requests.add(attributes={"tier": "edge"})
    (third,) = meter.collect(40)
    assert (third.value, third.start_ns, third.time_ns) == (1, 30, 40)
    assert first["latency"].histogram.count == 1, "a collected histogram is not the live one"


def test_gauge_keeps_its_last_value():
    meter = Meter(start_ns=0)
    queue = meter.gauge("queue", "1")
    assert meter.collect(1) == []
    queue.set(3)
    queue.set(4)
    assert [point.value for point in meter.collect(2)] == [4]
    assert [point.value for point in meter.collect(3)] == [4]


def test_attribute_order_makes_no_difference_and_types_do():
    meter = Meter()
    counter = meter.counter("c")
    counter.add(1, {"a": "1", "b": "2"})
    counter.add(1, {"b": "2", "a": "1"})
    counter.add(1, {"a": "1", "b": "3"})
    assert sorted(point.value for point in meter.collect(1 << 62)) == [1, 2]


def test_odd_attribute_values_become_short_strings():
    meter = Meter()
    counter = meter.counter("c")
    counter.add(1, {"list": [1, 2], "long": "x" * 1000, "none": None})
    (point,) = meter.collect(1 << 62)
    assert point.attributes == {"list": "[1, 2]", "long": "x" * 256, "none": "None"}


def test_attribute_sets_are_bounded_and_overflow_is_counted():
    meter = Meter(series_limit=3)
    counter = meter.counter("c")
    for round_ in range(2):
        for k in range(10):
            counter.add(1, {"k": k})
        points = by_attributes(meter.collect(1000 + round_))
        assert len(points) == 4
        assert points[("otel.metric.overflow", True),].value == 7
        assert sum(point.value for point in points.values()) == 10
    assert meter.overflowed == 14


def test_values_that_are_no_numbers_are_dropped_and_counted():
    meter = Meter()
    meter.counter("c").add(-1)
    meter.counter("c").add(math.nan)
    meter.histogram("h").record(math.inf)
    meter.gauge("g").set(math.nan)
    assert meter.collect(1 << 62) == []
    assert meter.rejected == 4


@pytest.mark.parametrize("values", [[], [0.5], [0.5] * 7, [0.5, 0.25, 0.5], [math.inf, math.inf], [0.5, math.nan, 2.0]])
def test_several_values_at_once_are_as_one_by_one(values):
    meter = Meter(start_ns=0)
    singly, together = meter.histogram("singly"), meter.histogram("together")
    for value in values:
        singly.record(value)
    together.record_all(values)
    assert together.rejected == singly.rejected
    found = {point.name: point.histogram for point in meter.collect(1)}
    if found:
        assert found["singly"].buckets == found["together"].buckets
        assert (found["singly"].count, found["singly"].sum) == (found["together"].count, pytest.approx(found["together"].sum))


def test_same_name_gives_the_same_instrument_and_another_kind_is_refused():
    meter = Meter()
    assert meter.counter("x") is meter.counter("x")
    with pytest.raises(UsageError, match="instrument 'x': already a sum; expected a gauge"):
        meter.gauge("x")


def test_collect_never_goes_back_in_time():
    meter = Meter(start_ns=100)
    meter.counter("c").add()
    (point,) = meter.collect(50)
    assert (point.start_ns, point.time_ns) == (100, 100)


def test_nothing_is_lost_between_threads():
    meter = Meter()
    counter, histogram = meter.counter("c"), meter.histogram("h")
    per_thread, threads = 3000, 4
    start = threading.Barrier(threads + 1)

    def work(k):
        start.wait()
        for _ in range(per_thread):
            counter.add(1, {"k": k % 2})
            histogram.record(0.001, {"k": k})

    workers = [threading.Thread(target=work, args=(k,)) for k in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    collected = []
    while any(worker.is_alive() for worker in workers):
        collected += meter.collect(1 << 62)
    for worker in workers:
        worker.join()
    collected += meter.collect(1 << 62)
    assert sum(point.value for point in collected if point.name == "c") == per_thread * threads
    assert sum(point.histogram.count for point in collected if point.name == "h") == per_thread * threads


def test_noop_twin_takes_everything_and_gives_nothing():
    meter = NoopMeter()
    meter.counter("c").add(1, {"a": "b"})
    meter.histogram("h").record(1)
    meter.gauge("g").set(1)
    assert meter.collect(1) == []
