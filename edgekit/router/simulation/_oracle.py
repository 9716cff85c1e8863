"""What one could reach who knew every service time and every state of the network beforehand.

Two numbers, each proven for every trace, whatever the policy:

- **hits**, an upper bound: the requests that the cloud could answer in time if each had the uplink and the servers to itself, plus the largest number of the
  others that the device can run in time.
- **least cloud use** at that many hits, a lower bound: hits less the largest number of all requests that the device can run in time.

The largest number on the device is exact for one worker: with a common SLA, release times and deadlines are in the same order, and for such jobs the method of
Kise, Ibaraki and Mine (Operations Research 26 (1), 1978: add by deadline; when the last is late, take out the one whose absence ends the rest soonest) is
optimal without preemption. A device whose speed changes is the same problem on the clock of the work it has done. Several workers are bounded by one that
is as fast as all of them, and mixed SLAs by raising deadlines to the latest of an earlier arrival; both only raise the bound.

An operator's budget of cloud attempts lowers both: no more hits than the device's largest number and the budget together.

Where the cloud's queue and the uplink's are short, both bounds are reached by one schedule: the device runs its largest set, the cloud the rest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from edgekit.router.simulation._trace import Endpoint, State, Trace

__all__ = ["Oracle", "clairvoyant", "most_in_time"]

# Times are sums of many floats; a schedule that ends a nanosecond late is in time for the bound.
TOLERANCE_S = 1e-9
HOUR_S = 3600.0


class Oracle(msgspec.Struct, frozen=True):
    """The bounds of one trace.

    Attributes:
        hits: no policy answers more requests in time.
        least_cloud: no policy with that many hits sends fewer to the cloud.
        blind_least_cloud: least cloud use at that many hits, in expectation, of one who knows everything but how long a request will run on the device until it
            has run: the device then ends no more requests than it has time for at their mean (Wald's equation).
        latencies_s: of the schedule that gives the device its largest set and the cloud what it can answer in time; of its hits only.
    """

    hits: int
    least_cloud: int
    blind_least_cloud: float
    latencies_s: list[float]


def clairvoyant(trace: Trace) -> Oracle:
    """Both bounds of a trace."""
    count = len(trace)
    deadlines = [arrive + sla for arrive, sla in zip(trace.arrive_s, trace.sla_s, strict=True)]
    cloud_end = [_earliest_answer(trace, request, deadlines[request]) for request in range(count)]
    only_device = [request for request in range(count) if cloud_end[request] > deadlines[request] + TOLERANCE_S]
    on_device = _device_set(trace, deadlines, range(count))
    hits = count - len(only_device) + len(_device_set(trace, deadlines, only_device))
    # More in time on the device than the bound of both tiers cannot be; the cloud only adds.
    least_cloud = max(0, hits - len(on_device))
    if trace.cloud_an_hour is not None:
        hours = math.ceil((trace.arrive_s[-1] + trace.sla_s[-1]) / HOUR_S)
        least_cloud = min(least_cloud, trace.cloud_an_hour * hours)
        hits = min(hits, len(on_device) + least_cloud)
    latencies = _device_latencies(trace, on_device)
    served = set(on_device)
    sent = [request for request in range(count) if request not in served and cloud_end[request] <= deadlines[request] + TOLERANCE_S]
    latencies += [cloud_end[request] - trace.arrive_s[request] for request in sent]
    return Oracle(hits, least_cloud, max(least_cloud, hits - _blind_most(trace, max(deadlines))), latencies[:hits])


def most_in_time(jobs: Sequence[tuple[float, float, float]]) -> list[int]:
    """A largest set of jobs that one machine can end in time, without preemption.

    Args:
        jobs: ``(release, work, deadline)``, releases and deadlines both ascending; the machine does one unit of work in one unit of time.

    Returns:
        indexes into ``jobs``, ascending; run in this order, each as soon as it can, all are in time.
    """
    kept: list[int] = []
    block: list[int] = []  # positions in `jobs` since the machine last had nothing to do
    waits: list[float] = []  # how long each of the block waits before it starts
    end = -math.inf
    for index, (release, work, deadline) in enumerate(jobs):
        if release >= end:
            kept += block
            block, waits, end = [], [], release
        waits.append(end - release)
        block.append(index)
        end += work
        if end > deadline + TOLERANCE_S:
            end = _take_out(jobs, block, waits, kept, end)
    return kept + block


def _take_out(jobs: Sequence[tuple[float, float, float]], block: list[int], waits: list[float], kept: list[int], end: float) -> float:
    """Remove the job of the block without which the rest ends soonest; returns that end.

    Without job j the rest ends earlier by its work, but no more than any later one waits: that one cannot start before its release.
    """
    best, chosen, least_wait = -1.0, 0, math.inf
    for position in range(len(block) - 1, -1, -1):
        gain = min(jobs[block[position]][1], least_wait)
        if gain > best:
            best, chosen = gain, position
        least_wait = min(least_wait, waits[position])
        if least_wait <= best:
            break
    shift = jobs[block[chosen]][1]
    del block[chosen], waits[chosen]
    split = 0
    for position in range(chosen, len(block)):
        if waits[position] <= shift:
            shift = waits[position]
            split = position  # it starts at its release now: what is before it cannot help any later job
        waits[position] -= shift
    if split:
        kept += block[:split]
        del block[:split], waits[:split]
    return end - shift


def _device_set(trace: Trace, deadlines: Sequence[float], requests: Sequence[int]) -> list[int]:
    """A largest set of ``requests`` that the device can answer in time, on the clock of the work that it has done."""
    device, share = trace.device, 1.0 / trace.workers
    latest = list(accumulate((deadlines[request] for request in requests), max))
    jobs = [
        (device.integral(trace.arrive_s[request]), trace.work_s[request] * share, device.integral(deadline))
        for request, deadline in zip(requests, latest, strict=True)
    ]
    # One worker alone cannot make these, however many there are.
    possible = [index for index, (release, work, deadline) in enumerate(jobs) if release + work * trace.workers <= deadline + TOLERANCE_S]
    chosen = most_in_time([jobs[index] for index in possible])
    return [requests[possible[index]] for index in chosen]


def _blind_most(trace: Trace, until_s: float) -> float:
    """How many requests the device can end until then, in expectation, whichever it is given."""
    return trace.workers * trace.device.integral(until_s) / statistics.fmean(trace.work_s)


def _device_latencies(trace: Trace, requests: Sequence[int]) -> list[float]:
    """Of requests that the device runs in this order, on one worker as fast as all."""
    latencies, end = [], 0.0
    for request in requests:
        arrive = trace.arrive_s[request]
        end = trace.device.when(max(arrive, end), trace.work_s[request] / trace.workers)
        latencies.append(end - arrive)
    return latencies


def _earliest_answer(trace: Trace, request: int, deadline_s: float) -> float:
    """The first time at which any endpoint can have answered, with the uplink and its servers to itself, sent at the best moment; may be infinite."""
    sent = trace.uplink.when(trace.arrive_s[request], trace.payload_bytes[request])
    return min((_earliest_of(trace, endpoint, request, sent, deadline_s) for endpoint in trace.endpoints), default=math.inf)


def _earliest_of(trace: Trace, endpoint: Endpoint, request: int, sent_s: float, deadline_s: float) -> float:
    jitter = trace.jitter[request]
    moments = [sent_s, *endpoint.round_trip_s.changes(sent_s, deadline_s), *trace.loss.changes(sent_s, deadline_s)]
    there = min(moment + trace.stall_s(request, moment) + endpoint.round_trip_s.at(moment) * jitter for moment in moments)
    starts = [there] if endpoint.state.at(there) == State.WELL else []
    starts += [moment for moment in endpoint.state.changes(there, deadline_s) if endpoint.state.at(moment) == State.WELL]
    return min((endpoint.speed.when(start, endpoint.work_s[request]) for start in starts), default=math.inf)
