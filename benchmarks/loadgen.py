"""MLPerf LoadGen, whose rules are others', sends through the router: SingleStream and Server, and the same to the edge server directly.

SingleStream sends the next request when the last was answered and tells the 90th percentile. Server sends with Poisson gaps at a rate and is valid when 99 % are answered within the target.
LoadGen itself says whether a run is valid: enough queries, long enough, the latency bound met. The duration here is shortened from MLPerf's 600 s, and the report says to
what. A request that fails is completed towards LoadGen (it has no failures) and counted here; a run with one is not valid.

What it does not show: accuracy (LoadGen's accuracy mode is another run), a network that is bad (`routing` does), an MLPerf submission.

Run ``python -m benchmarks loadgen [--seconds S] [--rate R] [--sla-ms X]``; prints JSON; exit 1 when a run is not valid.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks._results import plain
from benchmarks._results_routing import Loadgen, LoadgenRun
from benchmarks._site import Site, recogniser
from edgekit.protocol import InferenceClient, InferRequest, InFlight, Tensor, connect

SCENARIOS = ("SingleStream", "Server")
MLPERF_SECONDS = 600
SAMPLES = 64
# LoadGen's early stopping calls a 99th percentile proven by this many queries when none is late, and asks for more when some are.
SERVER_QUERIES = 662
SUMMARY = "mlperf_log_summary.txt"


class _Sender:
    """LoadGen's system under test: passes each query on to a client."""

    def __init__(self, client: InferenceClient, model: str, array: np.ndarray, timeout_s: float) -> None:
        self._client, self._model, self._array, self._timeout_s = client, model, array, timeout_s
        self.queries = 0
        self.failures: Counter[str] = Counter()

    def issue(self, queries: Sequence[Any]) -> None:
        for query in queries:
            self.queries += 1
            request = InferRequest(self._model, [Tensor("x", self._array)], id=str(query.id))
            self._client.start(request, self._timeout_s).add_done_callback(functools.partial(self._ended, query.id))

    def _ended(self, number: int, ended: InFlight) -> None:
        import mlperf_loadgen

        try:
            ended.result(0)
        except Exception as exc:  # noqa: BLE001 - whatever it is, LoadGen must hear an end, and we count it
            self.failures[str(exc)] += 1
        mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(number, 0, 0)])


def run(
    url: str, model: str, array: np.ndarray, scenario: str, seconds: float, rate_per_s: float, target_ms: float, folder: Path
) -> LoadgenRun:
    """One scenario against one server.

    Args:
        url: of a server that speaks the Open Inference Protocol.
        model, array: its model and the value of its input ``x``.
        scenario: one of `SCENARIOS`.
        seconds: least duration; a Server run lasts until it has `SERVER_QUERIES` too.
        rate_per_s: of the Server scenario's arrivals.
        target_ms: within which 99 % must be answered in the Server scenario.
        folder: LoadGen's logs go there.
    """
    import mlperf_loadgen

    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(seconds * 1e3)
    settings.min_query_count = max(SERVER_QUERIES, round(rate_per_s * seconds)) if scenario == "Server" else SAMPLES
    settings.server_target_qps = rate_per_s
    settings.server_target_latency_ns = round(target_ms * 1e6)
    settings.server_target_latency_percentile = 0.99
    logs = mlperf_loadgen.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False
    client = connect(url)
    sender = _Sender(client, model, array, timeout_s=10.0)
    system = mlperf_loadgen.ConstructSUT(sender.issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
    try:
        mlperf_loadgen.StartTestWithLogSettings(system, library, settings, logs, "")
    finally:
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(system)
        client.close()
    return told(scenario, (folder / SUMMARY).read_text("utf-8"), sender.queries, sender.failures)


def told(scenario: str, summary: str, queries: int, failures: Counter[str]) -> LoadgenRun:
    """LoadGen's summary as figures, and what requests failed with."""
    failed = failures.total()
    facts = {name.strip(): value.strip() for name, value in re.findall(r"^(.+?) ?: (.+)$", summary, re.MULTILINE)}

    def milliseconds(name: str) -> float:
        return float(facts[name]) / 1e6

    reasons = [f"{name}: no" for name in facts if name.endswith("satisfied") and facts[name].lower() == "no"]
    mean_s = milliseconds("Mean latency (ns)") / 1e3
    judged = "90.00" if scenario == "SingleStream" else "99.00"
    return LoadgenRun(
        scenario=scenario,
        valid=facts["Result is"] == "VALID" and not failed,
        queries=queries,
        failed=failed,
        seconds=float(facts["min_duration (ms)"]) / 1e3,
        p50_ms=milliseconds("50.00 percentile latency (ns)"),
        percentile_ms=milliseconds(f"{judged} percentile latency (ns)"),
        p99_9_ms=milliseconds("99.90 percentile latency (ns)"),
        per_s=float(facts["Completed samples per second"]) if scenario == "Server" else 1 / mean_s,
        why="; ".join([*reasons, *([f"{count} requests failed: {text}" for text, count in failures.most_common(3)])]),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run at least; MLPerf asks for 600")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second in the Server scenario")
    parser.add_argument("--sla-ms", type=float, default=150.0, help="the router's deadline, and the Server scenario's target")
    options = parser.parse_args()
    found: dict[str, dict[str, LoadgenRun]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, array = recogniser(folder)
        with Site(bundle, folder) as site, site.router(options.sla_ms) as router_url:
            for where, url in (("edge server", site.edge_url), ("router", router_url)):
                found[where] = {}
                for scenario in SCENARIOS:
                    logs = folder / f"{where}-{scenario}".replace(" ", "-")
                    logs.mkdir()
                    outcome = run(url, site.model, array, scenario, options.seconds, options.rate, options.sla_ms, logs)
                    found[where][scenario] = outcome
                    print(f"{where}: {outcome}", file=sys.stderr, flush=True)
    document = Loadgen(
        version=metadata.version("mlcommons-loadgen"),
        seconds=options.seconds,
        mlperf_seconds=MLPERF_SECONDS,
        rate_per_s=options.rate,
        sla_ms=options.sla_ms,
        runs=found,
    )
    print(json.dumps(plain(document), indent=2))
    return 0 if all(run.valid for runs in found.values() for run in runs.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
