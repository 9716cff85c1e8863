"""MLPerf LoadGen sends through a real router to a real edge server, and finds the run valid by its own rules."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.loadgen import SCENARIOS, SERVER_QUERIES, run, told
from edgekit.errors import OverloadedError
from edgekit.protocol import serve
from edgekit.router import RouterOptions, serve_router
from edgekit.runtime import serve_bundles

ANY = ("127.0.0.1", 0)
X = np.ones((1, 8), np.float32)

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen has no wheel here")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_run_through_the_router_is_valid(bundle, scenario, transport, tmp_path):
    """A bound that only a hung server would miss, and room for all of them: what is tested is that every query is answered once and that LoadGen agrees."""
    edge = serve_bundles([bundle.path], ANY, None)
    router = serve_router(f"http://127.0.0.1:{edge.http_port}", [], 5000.0, http=ANY, grpc=ANY, options=RouterOptions(queue=SERVER_QUERIES))
    try:
        port = router.http_port if transport == "http" else router.grpc_port
        found = run(f"{transport}://127.0.0.1:{port}", "tiny_mlp", X, scenario, 0.5, 500.0, 5000.0, tmp_path)
    finally:
        router.stop()
        edge.stop()
    assert found.valid, found.why
    assert (found.failed, found.why) == (0, "")
    assert found.queries >= 30
    assert 0 < found.p50_ms <= found.percentile_ms <= found.p99_9_ms


@pytest.mark.slow
def test_a_run_whose_requests_fail_is_not_valid(scripts, scripted_core, tmp_path):
    scripts[0].mode = OverloadedError("edge", "full")
    server = serve(scripted_core(scripts[0]), ANY, None)
    try:
        found = run(f"http://127.0.0.1:{server.http_port}", "m", X, "Server", 0.2, 1000.0, 5000.0, tmp_path)
    finally:
        server.stop()
    assert not found.valid
    assert found.failed == found.queries
    assert "requests failed: " in found.why


SUMMARY = """SUT name : PySUT
Result is : INVALID
  Min duration satisfied : NO
  Min queries satisfied : Yes
Completed samples per second    : 12.50
Mean latency (ns)               : 4000000
50.00 percentile latency (ns)   : 3000000
90.00 percentile latency (ns)   : 5000000
99.00 percentile latency (ns)   : 7000000
99.90 percentile latency (ns)   : 9000000
min_duration (ms): 1500
"""


def test_what_loadgen_says_is_read():
    server, single = told("Server", SUMMARY, 20, Counter()), told("SingleStream", SUMMARY, 20, Counter({"no way": 2}))
    assert (server.valid, server.why) == (False, "Min duration satisfied: no")
    assert (server.percentile_ms, server.per_s, server.seconds) == (7.0, 12.5, 1.5)
    assert (single.percentile_ms, single.per_s) == (5.0, 250.0)
    assert single.why.endswith("2 requests failed: no way")
