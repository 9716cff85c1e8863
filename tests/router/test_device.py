"""The device's queue and what is known of its service times, with injected time and seeded noise."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.router._breaker import Breaker
from edgekit.router._decide import Health
from edgekit.router._device import LATE, Device
from edgekit.router._events import Ask, Terms
from edgekit.router._services import size_class

MODEL, SIZE, FAR = "m", 4096, 1e9


def ask(request=1, model=MODEL, size=SIZE, deadline_s=FAR, priority=0, **more):
    return Ask(request, model, size, 0.0, deadline_s, deadline_s + 1.0, 0.1, priority, **more)


def made(workers=1, capacity=64):
    return Device(workers, capacity, Breaker(random_source=random.Random(0)))


def run(device, now, service_s, **more):
    """One request through the device; returns the time at its end."""
    device.start(0, ask(**more), now)
    device.finish(0, now + service_s)
    return now + service_s


def noisy(random_source, median_s, sigma=0.15):
    return median_s * math.exp(random_source.gauss(0.0, sigma))


def warm(device, random_source, median_s=0.02, count=300, now=0.0, gap_s=0.05):
    for _ in range(count):
        now = run(device, now, noisy(random_source, median_s)) + gap_s
    return now


def typical(device, now, size=SIZE):
    return device.estimate(ask(size=size), 1.0, now).service_s


def test_nothing_is_known_before_the_first_run():
    assert not made().estimate(ask(), 0.1, 0.0).known


def test_a_seed_makes_the_cold_start_defined():
    device = made()
    for service_s in (0.020, 0.021, 0.019):
        device.seed(MODEL, SIZE, service_s, 0.0)
    assert device.estimate(ask(), 0.1, 1.0).p_meet == 1.0
    assert device.estimate(ask(), 0.01, 1.0).p_meet == 0.0


def test_queue_and_in_flight_are_waited_for():
    device = made()
    now = warm(device, random.Random(5))
    mean_s = 0.02 * math.exp(0.15**2 / 2)
    device.start(1, ask(1), now)
    assert device.wait(0, FAR, 9, now)[0] == pytest.approx(mean_s, rel=0.05)
    assert device.wait(0, FAR, 9, now + 0.01)[0] == pytest.approx(mean_s - 0.01, rel=0.1)
    device.enqueue(ask(2), now, late=False)
    device.enqueue(ask(3), now, late=False)
    assert device.wait(0, FAR, 9, now)[0] == pytest.approx(3 * mean_s, rel=0.05)
    assert device.estimate(ask(9), 3.2 * mean_s, now).p_meet < 0.1
    assert device.estimate(ask(9), 6 * mean_s, now).p_meet > 0.99


def test_two_workers_wait_less():
    device = made(workers=2)
    now = warm(device, random.Random(6))
    device.start(1, ask(1), now)
    assert device.wait(0, FAR, 9, now) == (0.0, 0.0)
    device.start(2, ask(2), now)
    device.enqueue(ask(3), now, late=False)
    assert device.wait(0, FAR, 9, now)[0] == pytest.approx(1.5 * 0.02 * math.exp(0.15**2 / 2), rel=0.05)


def test_a_request_that_hangs_is_expected_to_go_on():
    device = made()
    now = warm(device, random.Random(7))
    device.start(1, ask(1), now)
    assert device.wait(0, FAR, 9, now + 10.0)[0] == pytest.approx(10.0)
    assert device.estimate(ask(9), 0.5, now + 10.0).p_meet == 0.0


def test_a_request_that_was_given_up_took_at_least_its_time():
    device = made()
    device.start(1, ask(1), 0.0)
    device.finish(1, 0.001, until_s=0.1)
    assert typical(device, 0.1) == pytest.approx(0.1, rel=0.02)


def test_the_outlook_falls_once_a_run_is_slower_than_the_window():
    device = made()
    now = warm(device, random.Random(15))
    device.start(1, ask(1), now)
    place = device.enqueue(ask(2), now, late=False)
    p_meet, again_s = device.still_running(1, now + 0.1, now + 0.01)
    assert p_meet == 1.0
    assert again_s > now + 0.02
    assert device.still_running(1, now + 0.1, now + 0.06)[0] == pytest.approx(0.4)  # as likely as not to take as long again
    assert device.still_running(1, now + 0.1, now + 0.098)[0] < 0.05
    assert device.still_waiting(ask(2), place, now + 0.1, now)[0] > 0.99
    assert device.still_waiting(ask(2), place, now + 0.028, now)[0] < 0.1


def test_what_is_dropped_leaves_no_wait_and_no_sample():
    device = made()
    now = warm(device, random.Random(8))
    before = typical(device, now)
    device.start(1, ask(1), now)
    place = device.enqueue(ask(2), now, late=False)
    device.remove(place)
    device.drop(1)
    assert device.wait(0, FAR, 9, now) == (0.0, 0.0)
    assert typical(device, now) == before


def test_size_classes_are_apart_and_unknown_ones_scale_from_the_nearest():
    device, random_source, now = made(), random.Random(9), 0.0
    for _ in range(100):
        now = run(device, now, noisy(random_source, 0.010), size=1000)
        now = run(device, now, noisy(random_source, 0.080), size=16000)
    assert typical(device, now, 1000) == pytest.approx(0.010, rel=0.1)
    assert typical(device, now, 16000) == pytest.approx(0.080, rel=0.1)
    assert typical(device, now, 64000) == pytest.approx(0.320, rel=0.1)  # two classes above
    assert typical(device, now, 100) == pytest.approx(0.010, rel=0.1)  # smaller is never promised faster
    assert size_class(1000) == size_class(600) != size_class(1100)


def test_models_are_apart_and_terms_are_kept():
    device = made()
    run(device, 0.0, 0.01)
    assert not device.estimate(ask(model="other"), 1.0, 1.0).known
    assert device.estimate(ask(on_edge=False), 1.0, 1.0).health is Health.ABSENT
    assert device.estimate(ask(terms=Terms(cloud_only=True)), 1.0, 1.0).health is Health.ABSENT


def test_a_full_queue_says_so():
    device = made(capacity=2)
    device.enqueue(ask(1), 0.0, late=False)
    assert device.health is Health.OK
    device.enqueue(ask(2), 0.0, late=False)
    assert device.health is Health.FULL


def test_what_is_late_keeps_nobody_out():
    device = made(capacity=2)
    device.enqueue(ask(1), 0.0, late=False)
    late = device.enqueue(ask(2), 0.0, late=True)
    assert device.health is Health.OK
    assert device.surplus() is None
    device.enqueue(ask(3), 0.0, late=False)
    assert device.surplus() == late
    device.remove(late)
    assert device.health is Health.FULL
    assert device.surplus() is None


QUEUED = st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 10.0), st.booleans()), min_size=1, max_size=40)


@given(QUEUED, st.data())
@settings(max_examples=60, deadline=None)
def test_in_time_before_late_then_priority_then_deadline(queued, data):
    device = made(capacity=1000)
    device.seed(MODEL, SIZE, 0.01, 0.0)
    places = [
        device.enqueue(ask(index + 1, deadline_s=deadline_s, priority=priority), 0.0, late)
        for index, (priority, deadline_s, late) in enumerate(queued)
    ]
    for place in data.draw(st.lists(st.sampled_from(places), unique=True, max_size=len(places) - 1)):
        device.remove(place)
        places.remove(place)
    order = []
    while (place := device.first()) is not None:
        assert device.wait(place[0], place[1], place[2], 0.0)[0] == 0.0  # it is next, and a worker is free
        device.remove(place)
        order.append(place)
    assert order == sorted(places)
    keys = [(place[0] >= LATE, place[0] % LATE, place[1]) for place in order]
    assert keys == sorted(keys)
    assert device.wait(5, FAR, 10**6, 0.0) == (0.0, 0.0)


# Probes


def test_no_probe_while_the_traffic_is_local():
    device = made()
    now = warm(device, random.Random(10))
    assert not device.probe_due(now + 100.0)


def test_probes_at_most_once_a_second_while_offloaded_and_never_beside_work():
    device = made()
    now = warm(device, random.Random(11))
    for _ in range(10):
        now = run(device, now, 0.12)
    probes = []
    end = now + 10.0
    while now < end:
        device.probes.offloaded(0.095, now)
        if device.probe_due(now):
            probes.append(now)
            now = run(device, now, 0.12)
        now += 0.01
    gaps = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert min(gaps) >= 0.12 / 0.1  # 10 % of the device's time: a 120 ms model every 1.2 s
    assert len(probes) >= 3
    place = device.enqueue(ask(1), now, late=False)
    assert not device.probe_due(now + 100.0)
    device.remove(place)
    device.start(1, ask(1), now)
    assert not device.probe_due(now + 100.0)


def test_a_recovered_device_is_known_within_one_probe_interval():
    random_source, device = random.Random(12), made()
    now = warm(device, random_source)
    for _ in range(40):
        now = run(device, now, noisy(random_source, 0.12))
    assert device.estimate(ask(), 0.1, now).p_meet < 0.2
    recovered_at = now
    while device.estimate(ask(), 0.1, now).p_meet < 0.99:
        device.probes.offloaded(0.095, now)
        if device.probe_due(now):
            now = run(device, now, noisy(random_source, 0.02))
        now += 0.005
        assert now < recovered_at + 10.0
    # One interval (1 / 0.1 times the last service, of about 0.12 s) and a chain of six 20 ms probes.
    assert now - recovered_at < 0.18 / 0.1 + 0.2
