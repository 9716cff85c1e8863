"""The router in process: real sessions, real threads, scripted tiers."""

import asyncio
import math
import re
import threading

import numpy as np
import pytest

from edgekit.errors import (
    DeadlineError,
    EngineError,
    NotFoundError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UsageError,
)
from edgekit.router import Router, RouterOptions
from edgekit.runtime import load
from edgekit.telemetry import Meter

X = {"x": np.arange(8, dtype=np.float32).reshape(1, 8)}
pytestmark = pytest.mark.usefixtures("no_thread_left")


class Telemetry:
    def __init__(self):
        self.meter = Meter()

    def points(self, name):
        return [point for point in self.meter.collect(10**18) if point.name == name]


def remote(clients, cloud=True, **options):
    edge, cloud_client = clients
    sla_ms = options.pop("sla_ms", 300)
    return Router(edge, cloud_client if cloud else None, sla_ms=sla_ms, model="m", **options)


def learn(router, runs=30):
    """Enough answers that the device is known to be fast; with so much time for each that a busy machine makes none of them use up a hedge."""
    for _ in range(runs):
        router.infer(X, deadline_ms=60_000)


# The device in this process


def test_it_answers_as_the_session_does(bundle):
    with load(bundle) as session, Router(bundle, sla_ms=1000) as router:
        expected = session.run(X)
        result = router.route(X)
        np.testing.assert_array_equal(result.outputs["probabilities"], expected["probabilities"])
        assert (result.tier, result.reason, result.late, result.hedged) == ("edge", "local_fits", False, False)
        assert (result.model, result.model_version) == ("tiny_mlp", "1")
        assert 0 < result.latency_ms < 1000
        assert router.infer(X)["probabilities"].shape == (1, 4)


@pytest.mark.parametrize("kind", ["path", "bundle", "session"])
def test_what_can_be_an_edge(bundle, kind):
    session = load(bundle)
    edge = {"path": str(bundle.path), "bundle": bundle, "session": session}[kind]
    with Router(edge, sla_ms=1000) as router:
        assert set(router.infer(X)) == {"probabilities"}
    if kind == "session":
        assert set(session.run(X)) == {"probabilities"}  # what the router did not open it does not close
    session.close()


def test_ainfer(bundle):
    async def several(router):
        return await asyncio.gather(*(router.ainfer(X, deadline_ms=2000) for _ in range(8)))

    with Router(bundle, sla_ms=1000) as router:
        answers = asyncio.run(several(router))
    assert len(answers) == 8
    assert all(np.array_equal(answer["probabilities"], answers[0]["probabilities"]) for answer in answers)


def test_many_threads_get_their_own_answers(bundle):
    with Router(bundle, sla_ms=5000) as router, load(bundle) as session:
        wrong = []

        def ask(seed):
            random = np.random.default_rng(seed)
            for _ in range(25):
                inputs = {"x": random.normal(size=(1, 8)).astype(np.float32)}
                if not np.allclose(router.infer(inputs)["probabilities"], session.run(inputs)["probabilities"]):
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ({"y": X["x"]}, "no such input"),
        ({}, "missing"),
        ({"x": np.ones((1, 9), np.float32)}, "shape [1,9]"),
        ({"x": np.ones((1, 8))}, "dtype float64"),
        ({"x": [1.0]}, "NumPy array"),
    ],
)
def test_a_bad_request_is_told_and_not_tried_elsewhere(bundle, clients, inputs, line):
    with Router(bundle, clients[1], sla_ms=1000) as router, pytest.raises(RequestError, match=re.escape(line)):
        router.infer(inputs)
    assert clients[1].script.calls == 0


def test_bad_settings(bundle):
    for sla_ms in (0, -1, math.nan, math.inf):
        with pytest.raises(UsageError, match="sla_ms"):
            Router(bundle, sla_ms=sla_ms)
    with pytest.raises(UsageError, match="queue >= 1"):
        RouterOptions(queue=0)
    with pytest.raises(UsageError, match="edge"):
        Router(3, sla_ms=10)  # a user's mistake
    with pytest.raises(UsageError, match="tiny_mlp"):
        Router(bundle, sla_ms=10, model="other")
    with pytest.raises(UsageError, match="ftp"):
        Router(bundle, "ftp://host", sla_ms=10)


def test_bad_deadlines(bundle):
    with Router(bundle, sla_ms=1000) as router:
        with pytest.raises(RequestError, match="deadline_ms"):
            router.infer(X, deadline_ms=0)
        with pytest.raises(DeadlineError, match="has passed"):
            router.route(X, deadline_s=0.0)
        assert router.explain()["decision"]["reason"] == "deadline_passed"


def test_another_model_is_the_clouds_or_nobodys(bundle, clients):
    with Router(bundle, sla_ms=1000) as router, pytest.raises(NotFoundError, match="other"):
        router.infer(X, model="other")
    with Router(bundle, clients[1], sla_ms=1000) as router:
        result = router.route(X, model="other")
        assert (result.tier, result.reason) == ("cloud", "local_absent")


def test_after_close_it_refuses(bundle):
    router = Router(bundle, sla_ms=1000)
    router.close()
    router.close()
    with pytest.raises(OverloadedError, match="closed"):
        router.infer(X)


# Two tiers


def test_the_first_request_is_a_cold_start_then_the_device_fits(clients):
    with remote(clients) as router:
        assert router.route(X).reason == "cold_start"
        learn(router)
        result = router.route(X)
        assert (result.tier, result.reason) == ("edge", "local_fits")
        np.testing.assert_array_equal(result.outputs["y"], X["x"] * 2)
    assert clients[1].script.calls == 0  # the cloud was never needed


def test_a_server_as_edge_needs_a_model_name(clients):
    with Router(clients[0], sla_ms=300) as router, pytest.raises(RequestError, match="model"):
        router.infer(X)


def test_a_failing_device_falls_back_then_is_left_alone_then_comes_back(clients):
    edge, cloud = clients
    with remote(clients) as router:
        learn(router)
        edge.script.mode = EngineError("edge", "broke")
        results = [router.route(X) for _ in range(10)]
        assert {result.tier for result in results} == {"cloud"}
        assert results[-1].reason == "local_failing"
        assert cloud.script.calls == 10
        edge.script.mode = "answer"
        edge.script.reached.clear()
        assert edge.script.reached.wait(10.0)  # the shadow probe of the open breaker, within 1.5 s
        for _ in range(200):
            if router.route(X).tier == "edge":
                break
        assert router.route(X).tier == "edge"


def test_a_dead_cloud_is_no_error_while_the_device_answers(clients):
    edge, cloud = clients
    cloud.script.mode = UnavailableError("cloud", "refused")
    cloud.script.ready = False
    with remote(clients) as router:
        learn(router)
        assert {router.route(X).tier for _ in range(50)} == {"edge"}
    assert cloud.script.calls == 0
    assert edge.script.calls == 80


def test_a_dead_cloud_with_a_failing_device_tells_the_devices_error(clients):
    edge, cloud = clients
    edge.script.mode = EngineError("edge", "broke")
    cloud.script.mode = UnavailableError("cloud", "refused")
    with remote(clients) as router, pytest.raises(EngineError, match="broke"):
        router.infer(X)


def test_no_cloud_is_offline(clients):
    edge, _ = clients
    edge.script.mode = EngineError("edge", "broke")
    with remote(clients, cloud=False) as router:
        for _ in range(8):
            with pytest.raises(EngineError, match="broke"):
                router.infer(X)
        assert router.explain()["decision"]["reason"] == "no_tier"
        edge.script.mode = "answer"
        assert router.route(X).tier == "edge"  # tried all the same
        assert router.route(X).reason != "no_tier"
        assert router.explain()["cloud"] == []


def test_a_hanging_device_is_hedged_by_the_cloud(clients):
    """That it is in time is shown in virtual time (`test_pilot`): here a busy machine may hold up any thread."""
    edge, cloud = clients
    with remote(clients) as router:
        learn(router)
        edge.script.mode = "hang"
        result = router.route(X)
        assert (result.tier, result.hedged) == ("cloud", True)
        assert cloud.script.calls == 1
        edge.script.mode = "answer"
        edge.script.release()


def test_a_hanging_cloud_that_was_asked_first_is_rescued_by_the_device(clients):
    """The device's answers fail until its breaker opens, so the cloud comes first; then the cloud hangs while the device is well again."""
    edge, cloud = clients
    with remote(clients, sla_ms=400) as router:
        learn(router)
        edge.script.mode = EngineError("edge", "broke")
        for _ in range(6):
            assert router.route(X).tier == "cloud"
        assert router.explain()["decision"]["tiers"] == ["cloud", "edge"]
        cloud.script.mode = "hang"
        edge.script.mode = "answer"
        result = router.route(X)
        assert result.tier == "edge"
        results = [router.route(X) for _ in range(20)]
        assert {result.tier for result in results} == {"edge"}


def test_request_errors_of_a_remote_tier_are_final(clients):
    edge, cloud = clients
    edge.script.mode = RequestError("input 'x'", "wrong shape")
    with remote(clients) as router, pytest.raises(RequestError, match="wrong shape"):
        router.infer(X)
    assert (edge.script.calls, cloud.script.calls) == (1, 0)


def test_the_loser_of_a_hedge_is_cancelled(clients):
    """Both tiers hang with the request; the device is let go first."""
    edge, cloud = clients
    cloud.script.mode = "hang"
    with remote(clients, sla_ms=200) as router:
        learn(router)
        edge.script.mode = "hang"
        answers = []
        thread = threading.Thread(target=lambda: answers.append(router.route(X, request_id="both")))
        thread.start()
        assert cloud.script.reached.wait(5.0)  # hedged: now both run
        edge.script.mode = "answer"
        edge.script.release()  # the device answers first
        thread.join(5.0)
        assert [(answer.tier, answer.hedged) for answer in answers] == [("edge", True)]
        assert cloud.cancelled == 1
        assert edge.script.ids.count("both") == cloud.script.ids.count("both") == 1


def test_a_device_that_misses_its_time_is_slow_not_broken(clients):
    """An edge server refuses what it cannot make, quickly; that must neither look fast nor be forgotten."""
    edge, _ = clients
    with remote(clients) as router:
        learn(router)
        edge.script.mode = DeadlineError("edge", "cannot be in time")
        results = [router.route(X) for _ in range(10)]
        assert {result.tier for result in results} == {"cloud"}
        assert {result.reason for result in results[4:]} == {"local_too_slow"}
        assert router.explain()["edge_estimate"]["health"] == "ok"


def test_the_queue_is_bounded(clients):
    edge, _ = clients
    options = RouterOptions(workers=1, queue=2, grace_ms=2000)
    with remote(clients, cloud=False, sla_ms=5000, options=options) as router:
        edge.script.mode = "hang"
        threads = [threading.Thread(target=router.infer, args=(X,)) for _ in range(3)]
        threads[0].start()
        assert edge.script.reached.wait(5.0)
        for thread in threads[1:]:
            thread.start()
        while router.explain()["edge"]["waiting"] < 2:
            threading.Event().wait(0.001)
        with pytest.raises(OverloadedError, match="queue is full"):
            router.infer(X)
        assert router.explain()["decision"]["reason"] == "local_full"
        edge.script.release()
        for thread in threads:
            thread.join(5.0)


def test_nobody_waits_beyond_deadline_and_grace(clients):
    edge, _ = clients
    edge.script.mode = "hang"
    with remote(clients, cloud=False, sla_ms=30, options=RouterOptions(grace_ms=50)) as router:
        with pytest.raises(DeadlineError):
            router.infer(X)
        edge.script.release()


def test_a_late_answer_is_given_and_marked(clients):
    edge, _ = clients
    edge.script.mode = "hang"
    telemetry = Telemetry()
    with remote(clients, cloud=False, sla_ms=20, telemetry=telemetry) as router:
        timer = threading.Timer(0.1, edge.script.release)
        timer.start()
        result = router.route(X)
        timer.join()
        assert result.late
        assert result.latency_ms > 20
    requests = telemetry.points("edgekit.route.requests")
    assert [(point.attributes["edgekit.sla"], point.attributes["edgekit.outcome"]) for point in requests] == [("missed", "late")]


def test_closing_ends_requests_under_way(clients):
    edge, _ = clients
    edge.script.mode = "hang"
    router = remote(clients, cloud=False, sla_ms=20_000, options=RouterOptions(workers=1))
    errors = []

    def ask():
        try:
            router.infer(X)
        except Exception as exc:  # noqa: BLE001 - judged below
            errors.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    assert edge.script.reached.wait(5.0)
    threads[1].start()
    while router.explain()["edge"]["waiting"] < 1:
        threading.Event().wait(0.001)
    closer = threading.Thread(target=router.close)
    closer.start()
    threads[1].join(5.0)
    edge.script.release()
    for thread in (*threads, closer):
        thread.join(5.0)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [OverloadedError]  # what waited was refused, what ran was answered


def test_telemetry(clients):
    telemetry = Telemetry()
    with remote(clients, telemetry=telemetry) as router:
        learn(router, 10)
        with pytest.raises(RequestError):
            router.infer({"z": X["x"]})
        with pytest.raises(DeadlineError):
            router.route(X, deadline_s=0.0)
    points = telemetry.meter.collect(10**18)
    by_name = {name: [point for point in points if point.name == name] for name in {point.name for point in points}}
    requests = {
        (p.attributes["edgekit.tier"], p.attributes["edgekit.outcome"], p.attributes["edgekit.sla"]): p.value
        for p in by_name["edgekit.route.requests"]
    }
    assert requests == {("edge", "ok", "met"): 10, ("none", "rejected", "met"): 1, ("none", "rejected", "missed"): 1}
    durations = by_name["edgekit.request.duration"]
    assert sum(point.histogram.count for point in durations) == 12
    assert {point.attributes["edgekit.model.version"] for point in durations if point.attributes["edgekit.tier"] == "edge"} == {"7"}
    assert sum(point.value for point in by_name["edgekit.route.decisions"]) == 12
    assert [(p.attributes["edgekit.endpoint"], p.value) for p in by_name["edgekit.route.breaker"]] == [("http://cloud:1", 0.0)]
    assert {point.unit for point in durations} == {"s"}


def test_explain_is_json_and_complete(clients):
    import msgspec

    with remote(clients) as router:
        learn(router)
        told = msgspec.json.decode(msgspec.json.encode(router.explain()))
    assert told["decision"] == {"tiers": ["edge", "cloud"], "reason": "local_fits", "late": False, "endpoint": "http://cloud:1"}
    assert told["edge_estimate"]["p_meet"] >= 0.99
    assert len([told["cloud_estimate"]]) == 1
    assert told["cloud"][0]["breaker"] == "closed"
