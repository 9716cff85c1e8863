"""Small traces for the tests of the simulator."""

import random

from edgekit.router.simulation import Endpoint, State, Steps, Trace


def trace(arrive, work=0.01, *, cloud=(0.01,), sla=0.1, round_trip=0.02, payload=0, device=None, uplink=1e15, **fields):
    """Constant service times; ``cloud`` holds the service time of each endpoint."""
    count = len(arrive)
    work = [work] * count if isinstance(work, float) else list(work)
    endpoints = fields.pop("endpoints", None)
    if endpoints is None:
        endpoints = [Endpoint([service] * count, Steps.constant(round_trip)) for service in cloud]
    common = {
        "name": "test",
        "fault": False,
        "arrive_s": list(arrive),
        "sla_s": [sla] * count,
        "work_s": work,
        "payload_bytes": [payload] * count,
        "jitter": [1.0] * count,
        "luck": [0.5] * count,
        "device": device or Steps.constant(1.0),
        "uplink": uplink if isinstance(uplink, Steps) else Steps.constant(uplink),
        "endpoints": endpoints,
        "bench_s": work[:3],
    }
    return Trace(**(common | fields))


def random_steps(source, until, values):
    """Two to five steps of ``values``."""
    times = sorted(source.uniform(0.01, until) for _ in range(source.randint(1, 4)))
    return Steps([(0.0, source.choice(values)), *((at, source.choice(values)) for at in times)])


def random_trace(seed, count, workers=1):
    """A world in which everything changes: speeds, rates, losses, outages, up to three endpoints. The device stands still at most for a while."""
    source = random.Random(seed)
    arrive, now = [], 0.0
    for _ in range(count):
        now += source.expovariate(source.choice([20.0, 60.0, 200.0]))
        arrive.append(now)

    def endpoint():
        return Endpoint(
            [source.uniform(0.002, 0.06) for _ in range(count)],
            random_steps(source, now, [0.005, 0.02, 0.06]),
            random_steps(source, now, [1.0, 0.3, 0.1]),
            random_steps(source, now, [State.WELL, State.WELL, State.HANGS, State.REFUSES]),
            servers=source.choice([1, 2, 8]),
        )

    device = random_steps(source, 0.99 * now, [1.0, 0.5, 0.0, 2.0])
    return trace(
        arrive,
        [source.uniform(0.005, 0.05) for _ in range(count)],
        payload=5000,
        uplink=random_steps(source, now, [1e7, 1e6, 1e5, 0.0]),
        device=Steps([*zip(device.times, device.values, strict=True), (now, 1.0)]),
        endpoints=[endpoint() for _ in range(source.randint(0, 3))],
        loss=random_steps(source, now, [0.0, 0.3]),
        luck=[source.random() for _ in range(count)],
        jitter=[source.uniform(0.5, 2.0) for _ in range(count)],
        workers=workers,
        cloud_an_hour=source.choice([None, None, count // 4, count // 20]),
    )
