"""The router's state machine over virtual time: steady, throttled, cloud down, cloud back. Seeds are fixed; each scenario runs on three."""

import pytest

from tests.router.worlds import HANG, REFUSE, World, during

SEEDS = [1, 2, 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_steady(seed):
    """Load 0.3: the device answers nearly all, nothing is done twice."""
    world = World(seed).run(120.0)
    assert world.hit_rate() >= 0.997
    assert world.edge_share(world.asks) >= 0.98  # the device first
    assert not world.failed
    assert world.twice <= 0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_overload_sends_to_the_cloud_what_the_device_cannot_take(seed):
    """Load 1.2: the device alone makes 83 %; the cloud gets the rest and little more."""
    world = World(seed, rate=60.0).run(60.0)
    assert world.hit_rate() >= 0.99
    assert 1.0 - world.edge_share(world.asks) <= 0.17 * 1.6
    assert not world.failed
    assert world.twice <= 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_the_device_throttled_sixfold(seed):
    """120 ms a run: the device cannot make it. Lost is what runs or waits when it begins and has no time left for the cloud (three or four of some 300);
    from a second on, the cloud's own tail beyond 100 ms (log-normal: once in a thousand)."""
    world = World(seed, throttle=during(20.0, 40.0, 6.0, 1.0)).run(60.0)
    assert world.hit_rate(world.between(20.0, 21.0)) >= 0.7
    assert world.hit_rate(world.between(21.0, 40.0)) >= 0.99
    assert world.edge_share(world.between(20.0, 40.0)) <= 0.1
    assert not world.failed


@pytest.mark.parametrize("seed", SEEDS)
def test_the_device_throttled_threefold_is_not_given_up(seed):
    """60 ms a run, load 0.9: an idle device still makes it, a queue does not. The cloud takes what the queue would miss, and few run twice."""
    world = World(seed, throttle=during(20.0, 40.0, 3.0, 1.0)).run(40.0)
    throttled = world.between(20.0, 40.0)
    assert world.hit_rate(throttled) >= 0.99
    assert 0.05 <= world.edge_share(throttled) <= 0.9
    assert world.twice <= 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_a_recovered_device_is_used_again_within_a_probe_interval(seed):
    """All traffic is in the cloud; a 120 ms probe comes every 1.2 s (10 % of the device's time; noise makes that at most 1.8 s), then a chain of six."""
    world = World(seed, throttle=during(20.0, 40.0, 6.0, 1.0)).run(60.0)
    assert world.shadows
    assert world.edge_share(world.between(36.0, 40.0)) <= 0.05
    assert world.edge_share(world.between(42.5, 60.0)) >= 0.95
    assert world.hit_rate(world.between(40.0, 60.0)) >= 0.99


@pytest.mark.parametrize("kind", [HANG, REFUSE])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_cloud_costs_nothing_while_the_device_is_well(seed, kind):
    """No errors, and as good as the device alone, less one request in a hundred that was sent to the cloud for its queue's sake before the breaker opened."""
    world = World(seed, cloud=during(20.0, 40.0, kind, None)).run(60.0)
    alone = World(seed, endpoints=0).run(60.0)
    assert not world.failed
    assert world.hit_rate() >= alone.hit_rate() - 0.01
    # The watch asks every 5 s and waits a second for the answer, so the breaker is open by then.
    assert not any(number in world.sent for number in world.between(26.1, 39.0))


@pytest.mark.parametrize("kind", [HANG, REFUSE])
@pytest.mark.parametrize("seed", SEEDS)
def test_throttled_and_the_cloud_dies_and_comes_back(seed, kind):
    """While both are gone nobody can make it: 120 ms x 15/s overload the device. The cloud is back at 36 s; a failing health check is repeated 3 s later at most,
    and takes a second when it hangs."""
    world = World(seed, throttle=during(20.0, 70.0, 6.0, 1.0), cloud=during(30.0, 36.0, kind, None)).run(80.0)
    assert world.hit_rate(world.between(24.0, 30.0)) >= 0.98
    assert world.hit_rate(world.between(40.5, 70.0)) >= 0.98
    assert world.edge_share(world.between(41.0, 70.0)) <= 0.1
    assert world.hit_rate(world.between(75.0, 80.0)) >= 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_offline_it_recovers_by_itself(seed):
    world = World(seed, endpoints=0, throttle=during(20.0, 25.0, 6.0, 1.0)).run(60.0)
    assert not world.sent
    assert world.hit_rate(world.between(0.0, 20.0)) >= 0.99
    assert world.hit_rate(world.between(30.0, 60.0)) >= 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_routed_beats_either_tier_alone_under_faults(seed):
    """The device throttled for a quarter of the time, the cloud hanging for another: either alone loses its quarter, the router some requests at the edges."""
    faults = {"throttle": during(15.0, 30.0, 6.0, 1.0), "cloud": during(35.0, 50.0, HANG, None)}
    routed = World(seed, **faults).run(60.0)
    alone = World(seed, throttle=faults["throttle"], endpoints=0).run(60.0)
    assert routed.hit_rate() >= 0.99
    assert alone.hit_rate() <= 0.80
    assert not routed.failed


def test_the_same_seed_gives_the_same_actions():
    faults = {"throttle": during(5.0, 10.0, 4.0, 1.0), "cloud": during(12.0, 18.0, REFUSE, None), "endpoints": 3, "rate": 40.0}
    first, second = World(7, **faults).run(25.0), World(7, **faults).run(25.0)
    assert first.ends == second.ends
    assert (first.sent, first.ran, first.shadows, first.checks) == (second.sent, second.ran, second.shadows, second.checks)
