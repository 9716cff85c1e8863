"""A policy at work: a real edge server and a real second server as the cloud, with the router between them, seen from outside."""

import contextlib
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edgekit.errors import EdgeKitError, RequestError, StorageError, UsageError
from edgekit.protocol import InferRequest, InferResponse, Tensor, connect, serve
from edgekit.router import Router, serve_router
from edgekit.telemetry import Meter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_thread_left")]
X = np.arange(8, dtype=np.float32).reshape(1, 8)
ANY = ("127.0.0.1", 0)
SURE, UNSURE = ([[0.9, 0.05, 0.05]], [[0.4, 0.35, 0.25]])


def until(condition, limit_s=30.0):
    """Wait for something that another thread does."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


@pytest.fixture
def tiers(scripts, scripted_core):
    """Edge and cloud as real HTTP servers."""
    servers = [serve(scripted_core(script), ANY, None) for script in scripts]
    yield servers
    for script in scripts:
        script.release()
    for server in servers:
        server.stop(1.0)


class Policy:
    """A policy file, and a router that follows it."""

    def __init__(self, folder, tiers):
        self.file, self.state = folder / "policy.toml", folder / "budgets.json"
        self._tiers = tiers
        self.meter = Meter()

    def write(self, text):
        self.file.write_text(text)
        return self

    def router(self, sla_ms=5000):
        edge, cloud = (f"http://127.0.0.1:{server.http_port}" for server in self._tiers)
        return Router(edge, cloud, sla_ms=sla_ms, model="m", telemetry=self, policy=self.file, budget_state=self.state)


@pytest.fixture
def policy(tmp_path, tiers):
    return Policy(tmp_path, tiers)


def script_answers(script, probabilities):
    """The script's tier answers with these."""

    def handle(request):
        with script._lock:
            script.calls += 1
            script.ids.append((request.model_version, request.id))
        if isinstance(script.mode, Exception):
            raise script.mode
        return InferResponse(request.model_name, "7", [Tensor("p", np.array(probabilities, np.float32))], id=request.id)

    script.handle = handle


def test_edge_only_never_reaches_the_cloud_even_when_the_device_is_dead(policy, tiers, scripts):
    policy.write('models.m.data = "edge-only"\n')
    with policy.router(sla_ms=300) as router:
        assert router.route({"x": X}).tier == "edge"
        tiers[0].stop(0.0)
        for _ in range(20):
            with pytest.raises(EdgeKitError):
                router.infer({"x": X})
        assert router.cloud_reachable
    assert scripts[1].calls == 0


def test_without_that_policy_the_cloud_takes_over(policy, tiers, scripts):
    policy.write('models.other.data = "edge-only"\n')
    with policy.router() as router:
        assert router.route({"x": X}).tier == "edge"
        tiers[0].stop(0.0)
        assert {router.route({"x": X}).tier for _ in range(5)} == {"cloud"}


def test_five_requests_an_hour_are_five_requests_across_restarts(policy, tiers, scripts):
    policy.write("budget.per_hour.requests = 5\n")
    tiers[0].stop(0.0)
    answered = 0
    for _ in range(3):
        with policy.router() as router:
            for _ in range(4):
                with contextlib.suppress(EdgeKitError):
                    answered += router.route({"x": X}).tier == "cloud"
    assert answered == 5
    assert scripts[1].calls == 5


def test_a_cloud_that_cannot_be_reached_costs_nothing(policy, tiers):
    policy.write("budget.per_hour.requests = 5\n")
    for server in tiers:
        server.stop(0.0)
    with policy.router() as router:
        for _ in range(8):
            with pytest.raises(EdgeKitError):
                router.infer({"x": X})
        assert router.explain()["policy"]["budget"]["hour"]["spent"]["requests"] == 0


def test_an_unsure_answer_is_escalated_and_compared(policy, scripts):
    policy.write("models.m.cascade = { below = 0.2, every_s = 0.001, audit_share = 0 }\n")
    script_answers(scripts[0], UNSURE)
    script_answers(scripts[1], SURE)
    with policy.router() as router:
        until(lambda: router.route({"x": X}).tier == "cloud")  # once the cloud has been heard of
        result = router.route({"x": X})
        assert (result.tier, result.reason) == ("cloud", "local_unsure")
        np.testing.assert_array_equal(result.outputs["p"], np.array(SURE, np.float32))
        until(lambda: router.explain()["policy"]["compared"])
        (row,) = router.explain()["policy"]["compared"]
        assert (row["reason"], row["compared"] > 0, row["agreed"] == row["compared"]) == ("escalation", True, True)
        sent = scripts[1].calls
        script_answers(scripts[0], SURE)
        assert router.route({"x": X}).tier == "edge"
        assert scripts[1].calls == sent


def test_an_unsure_answer_is_given_when_the_cloud_fails(policy, scripts):
    policy.write("models.m.cascade = { below = 0.2, every_s = 0.001, audit_share = 0 }\n")
    script_answers(scripts[0], UNSURE)
    script_answers(scripts[1], SURE)
    with policy.router() as router:
        until(lambda: router.route({"x": X}).tier == "cloud")
        scripts[1].mode = UsageError("cloud", "broken")
        result = router.route({"x": X})
        assert (result.tier, result.reason) == ("edge", "local_unsure")
    told = [point.attributes for point in policy.meter.collect(10**18) if point.name == "edgekit.route.escalations"]
    assert sorted(attributes["edgekit.tier"] for attributes in told) == ["cloud", "edge"]


def test_a_model_that_the_device_does_not_have_is_named(bundle, tmp_path, caplog):
    (tmp_path / "p.toml").write_text('models.tiny_mpl.data = "edge-only"\nmodels.tiny_mlp.sla_ms = 70\n')
    with Router(bundle, sla_ms=1000, policy=tmp_path / "p.toml") as router:
        router.infer({"x": X})
    assert [record.getMessage() for record in caplog.records] == ["the policy names model 'tiny_mpl', which the device does not have"]


def test_a_bundle_in_this_process_is_escalated_too(bundle, clients, tmp_path):
    """No answer's margin reaches 1, but one whose other classes are 0."""
    (tmp_path / "p.toml").write_text("models.tiny_mlp.cascade = { below = 1, every_s = 0.001, audit_share = 0 }\n")
    with Router(bundle, clients[1], sla_ms=5000, policy=tmp_path / "p.toml") as router:
        until(lambda: router.route({"x": X}).reason == "local_unsure")
        assert router.route({"x": X}).tier == "cloud"
    assert clients[1].script.calls >= 1


def test_shadows_run_behind_the_answer_and_name_their_version(policy, scripts):
    policy.write('models.m.shadow = { share = 1, version = "9" }\n')
    script_answers(scripts[0], SURE)
    script_answers(scripts[1], [[0.1, 0.1, 0.8]])
    with policy.router() as router:
        until(lambda: router.route({"x": X}, request_id="mine").tier == "edge" and scripts[1].ids)
        until(lambda: router.explain()["policy"]["compared"])
        (row,) = router.explain()["policy"]["compared"]
        assert (row["reason"], row["agreed"]) == ("shadow", 0)
        assert set(scripts[1].ids) == {("9", "")}


def test_a_canary_asks_for_its_version_and_a_named_version_is_left_alone(policy, scripts):
    policy.write('models.m.canary = { version = "8", share = 0.5, tier = "edge" }\n')
    script_answers(scripts[0], SURE)
    with policy.router() as router:
        for number in range(40):
            router.route({"x": X}, request_id=f"r{number}")
        first = {name: version for version, name in scripts[0].ids if name}
        assert set(first.values()) == {"", "8"}
        for number in range(40):
            router.route({"x": X}, request_id=f"r{number}")
        assert all(first[name] == version for version, name in scripts[0].ids if name)
        router.route({"x": X}, request_id="named", version="7")
        assert ("7", "named") in scripts[0].ids


def test_a_change_holds_without_a_restart_and_a_mistake_changes_nothing(policy, scripts, caplog):
    policy.write("default.sla_ms = 20000\ndefault.priority.3.sla_ms = 10000\n")
    with policy.router() as router:

        def sla_s(**parameters):
            before = time.monotonic()
            router.route({"x": X}, parameters=parameters)
            return seen[-1] - before

        seen = []
        original = scripts[0].handle

        def handle(request):
            seen.append(request.deadline_s)
            return original(request)

        scripts[0].handle = handle
        # The attempt's time is the limit: the deadline and a grace of four times the SLA.
        assert 90.0 < sla_s() < 101.0
        assert 40.0 < sla_s(priority=3) < 51.0
        policy.write("default.sla_ms = 2000\n")
        until(lambda: sla_s() < 11.0)
        policy.write("default.sla_ms = 'fast'\n")
        until(lambda: router.explain()["policy"]["problem"])
        assert sla_s() < 11.0
        assert router.explain()["policy"]["problem"] == (
            f"{policy.file} line 1: default.sla_ms: 'fast'; expected milliseconds, a number above 0; correct the value"
        )
        assert sum("stays in force" in record.message for record in caplog.records) == 1


def test_identical_requests_in_flight_share_an_answer_where_the_policy_says_so(policy, scripts):
    policy.write("models.m.coalesce = true\n")
    scripts[0].mode = "hang"
    with policy.router(sla_ms=60_000) as router:
        ends, done = [], threading.Semaphore(0)

        def ended(end):
            ends.append(end)
            done.release()

        router.begin({"x": X}, ended)
        router.begin({"x": X.copy()}, ended)
        router.begin({"x": X.copy()}, ended, parameters={"temperature": 2})
        router.begin({"x": X + 1}, ended)
        scripts[0].release()
        for _ in range(4):
            assert done.acquire(timeout=30.0)
        assert sorted(end.outputs["y"][0, 0] for end in ends) == [0.0, 0.0, 0.0, 2.0]
        assert scripts[0].calls + scripts[1].calls == 3
        assert [end.reason for end in ends].count("shared") == 1


def test_a_bad_priority_is_refused(policy):
    with policy.write("").router() as router, pytest.raises(RequestError, match="parameter 'priority': high"):
        router.route({"x": X}, parameters={"priority": "high"})


def test_a_policy_that_is_wrong_stops_the_start(policy, tiers):
    with pytest.raises(UsageError, match="line 1: key of the file: unknown name 'slo'"):
        policy.write("slo = 3").router()
    policy.state.write_bytes(b"rubbish")
    with pytest.raises(StorageError, match="not a ledger of budgets"):
        policy.write("budget.per_day.dollars = 1").router()


def test_the_router_as_a_server_keeps_the_policy_and_the_metrics_tell(policy, tiers, scripts):
    policy.write("budget.per_hour = { requests = 3 }\nbudget.dollars_per_request = 0.5\n")
    edge, cloud = (f"http://127.0.0.1:{server.http_port}" for server in tiers)
    server = serve_router(edge, cloud, 5000, ANY, None, model="m", telemetry=policy, policy=policy.file, budget_state=policy.state)
    client = connect(f"http://127.0.0.1:{server.http_port}")
    try:
        tiers[0].stop(0.0)
        answers = 0
        for _ in range(8):
            with contextlib.suppress(EdgeKitError):
                answers += client.infer(InferRequest("m", [Tensor("x", X)]), 30.0).parameters["edgekit_tier"] == "cloud"
        assert (answers, scripts[1].calls) == (3, 3)
        spent = {}

        def told():
            for point in policy.meter.collect(10**18):
                if point.name == "edgekit.route.budget.spent":
                    spent[point.attributes["edgekit.budget.window"], point.attributes["edgekit.budget.unit"]] = point.value
            return spent.get(("hour", "requests")) == 3.0

        until(told)
        assert spent["day", "dollars"] == pytest.approx(1.5)
        assert spent["hour", "bytes"] == 3 * X.nbytes
    finally:
        client.close()
        server.stop()


def test_a_budget_holds_through_kill_9_of_the_router(policy, tiers, scripts):
    """Routers as processes of their own, each killed while its budget is half spent; the last one meets what is left."""
    policy.write("budget.per_hour.requests = 5\n")
    edge, cloud = (f"http://127.0.0.1:{server.http_port}" for server in tiers)
    tiers[0].stop(0.0)
    command = [sys.executable, "-m", "edgekit", "route", "--edge", edge, "--cloud", cloud, "--sla-ms", "10000", "--http", "127.0.0.1:0"]
    command += ["--grpc", "off", "--policy", str(policy.file), "--budget-state", str(policy.state), "--json"]
    answered = 0
    for requests in (2, 2, 3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                told = ""
                while not told.rstrip().endswith("}"):
                    line = process.stdout.readline()
                    assert line
                    told += line
                client = connect(f"http://127.0.0.1:{json.loads(told)['http']}")
                for _ in range(requests):
                    with contextlib.suppress(EdgeKitError):
                        answered += client.infer(InferRequest("m", [Tensor("x", X)]), 60.0).parameters["edgekit_tier"] == "cloud"
                client.close()
            finally:
                process.kill()
    assert (answered, scripts[1].calls) == (5, 5)
