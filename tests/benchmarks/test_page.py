"""The page of figures: every section from results of its shape, aims judged by the median, clear words for what is not there."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from benchmarks import _page, sustained, two_cores
from benchmarks._results import Spread
from benchmarks._sections import at_least, at_most, markdown, told

OTHERS = {
    "session_overhead": {"results": {"tiny": {"bare_p50_us": 5.0, "session_p50_us": 6.5, "added_p50_us": 1.5, "added_percent": 30.0}}},
    "engines": {
        "threads": 1,
        "results": {"m": {"onnxruntime": {"version": "1.31", "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "p50_over_onnxruntime": 1.0}, "tflite": {"error": "no"}}},
    },
    "scheduler": {
        "results": {
            "path": {"mlp": {"16 a turn": {"bare_us": 50.0, "turn_us": 150.0, "added_us_a_request": 6.25, "requests_per_s": 100_000}, "batch_limit_learned": 16}},
            "hand_over": {"inline_us": 50.0, "worker_us": 250.0, "added_us": 200.0},
            "concurrency": {"1, requests_per_s": 1000},
            "wait": {"capacity_per_s": 100_000, "load 0.5": {"best": "wait 0 us", "best_saves_percent": 0.25}},
            "overload": {"load 1.5": {"in_time": 0.66, "refused": 0.34, "late": 0.0, "possible_at_most": 0.667, "in_time_first_come": 0.01}},
        }
    },
    "cache": {
        "hit_ratios": {"zipf 0.9, 200 entries": {"s3fifo": {"hit_ratio": 0.38, "us_per_request": 1.0}, "lru": {"hit_ratio": 0.29, "us_per_request": 0.5}}},
        "keys": {"3072 bytes": {"blake3_us": 4.5}},
        "core": {"without_cache_us": 50.0, "miss_us": 60.0, "hit_us": 20.0},
    },
    "swap": {
        "results": {
            "requests_per_s": 1000,
            "most_requests_per_s": 2000,
            "p99_ratio": {"ratio": 1.15, "low": 1.1, "high": 1.3},
            "p99_ratios": [1.1, 1.2, 1.3],
            "quiet_to_quiet": {"ratio": 1.0, "low": 0.9, "high": 1.1},
            "swaps": 12,
            "phases": {
                "quiet": {"p50_ms": 0.5, "p95_ms": 0.75, "p99_ms": 1.25, "max_ms": 7.0, "requests": 5000},
                "installing": {"requests": 20},
            },
        }
    },
    "cold_start": {
        "results": {
            "installed_mb": {"edgekit": 1.5, "total": 2.0},
            "import": {"added_over_numpy_ms": {"edgekit.runtime.load": 30.0}},
            "m onnxruntime": {
                "measured": {"bare": {"start_ms": 100.0, "rss_mb": 60.0}, "ours": {"start_ms": 120.0, "rss_mb": 70.0}},
                "relative_to_bare": {"ours": {"start_ratio": 1.2, "start_ratio_quartiles": [1.1, 1.3], "cpu_ratio": 1.1, "rss_added_mb": 10.0}},
                "serve": {"answer_ms": 500.0, "answer_most_ms": 600.0},
            },
        }
    },
    "router_hop": {
        "rounds": 2,
        "pairs": 10,
        "results": {"m": {"http": {"direct_p50_us": [200.0, 210.0], "routed_p50_us": [500.0, 520.0], "added_p50_us": [300.0, 310.0], "router_cpu_us": [150.0, 160.0], "edge_cpu_us": [90.0, 95.0], "edge_cpu_added_us": [5.0, 6.0]}}},
    },
    "soak": {
        "seconds": 600.0,
        "crashed": None,
        "wrong_count": 0,
        "counts": {"good: 200": 1000, "good: 503": 5, "vanished": 7},
        "rss_mb": {"start": 80.0, "end": 90.0, "most": 91.0},
        "rss_slope_kb_per_min": -12.0,
        "sockets_open_afterwards": 1,
        "rss_mb_by_tenths": [80.0 + tenth for tenth in range(10)],
        "held": {"python_blocks": [10.0, None, 12.0]},
    },
}  # fmt: skip
FIGURES = {"requests_per_s": 500.0, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "load_busy": 0.2, "cpu_us": 1900.0}
OTHERS["two_cores"] = {
    "connections": 16,
    "models": {
        "fixed": two_cores.summary(
            {"0": [600.0, 600.0], "0,1": [1200.0, 1140.0]},
            {"0": [FIGURES, FIGURES], "0,1": [FIGURES | {"requests_per_s": rate} for rate in (810.0, 900.0)]},
            shared=True,
        )
    },
}
OTHERS["sustained"] = {
    "model": "a classifier",
    "device": "intel-nuc",
    "transport": "http",
    "rate_per_s": 1000.0,
    "minutes": 2.0,
    "limit_ms": 100.0,
    **sustained.figures(np.arange(0, 120, 0.5), np.full(240, 0.0125), {}, 120.0),
    "server_cores": 1.2,
    "generator_cores": 0.4,
    "rss_mb": 150.0,
    "rss_slope_mb_per_minute": 0.01,
    "met": True,
}
OTHERS["swap_large"] = OTHERS["swap"]


def predicted(hits):
    return {"sla_hit_rate": hits, "sla_hit_rate_sd": 0.01, "cloud_share": 0.5, "oracle": 1.0}


def real(scenario, policy, hits, said, with_drift, **more):
    """One row of `routing`, of 100 requests."""
    figures = {
        "requests": 100,
        "cloud_share": 0.4,
        "errors": 3,
        "errors_in_fault": 1,
        "p50_ms": 50.0,
        "p99_ms": 150.0,
        "edge_drift": 1.25,
        "cloud_drift": 1.0,
    }
    found = {
        "scenario": scenario,
        "policy": policy,
        "sla_hit_rate": hits,
        "predicted": predicted(said),
        "predicted_with_drift": predicted(with_drift),
    }
    return figures | found | {"cloud_runs": [10, 0, 20]} | more


ROUTING_ROWS = [
    real("steady", "edgekit", 0.99, 1.0, 1.0),
    real("contention", "local-only", 0.80, 0.90, 0.81),
    real("contention", "cloud-only", 0.80, 0.90, 0.90, waited_ms=4.5),
    real("cloud-silent", "edgekit", 0.55, 0.61, 0.61, cloud_runs=[30, 0, 20], waited_ms=21.0),
    real("cloud-down", "edgekit", 0.98, 0.99, 0.99, noticed_s=0.75),
    real("cloud-down", "local-only", 0.80, 0.90, 0.90),
]
OTHERS["routing"] = {
    "seconds": 15.0, "seeds": 20, "sla_ms": 150.0, "rate_per_s": 9.0, "edge_ms": 19.0, "cloud_ms": 50.0, "router_ms": 2.0,
    "lines": {"steady": "nothing goes wrong"}, "rows": ROUTING_ROWS,
}  # fmt: skip
LOADGEN_RUN = {
    "scenario": "Server",
    "valid": True,
    "queries": 700,
    "failed": 0,
    "seconds": 30.0,
    "p50_ms": 40.0,
    "percentile_ms": 90.0,
    "p99_9_ms": 95.0,
    "per_s": 9.9,
}
OTHERS["loadgen"] = {
    "version": "6.0", "seconds": 30.0, "mlperf_seconds": 600.0, "rate_per_s": 10.0, "sla_ms": 150.0,
    "runs": {"edge server": {"Server": LOADGEN_RUN}, "router": {"Server": LOADGEN_RUN | {"valid": False, "why": "Min queries satisfied: no"}}},
}  # fmt: skip


@pytest.fixture
def records(make_record, side_by_side):
    servers = {name: make_record(name, side_by_side) for name in ("serve", "serve_classifier", "serve_grpc")}
    return servers | {name: make_record(name, document) for name, document in OTHERS.items()}


def aims(text):
    """Figure, aim, measured and reached of each row."""
    rows = text.split("## Aims")[1].split("\n## ")[0].splitlines()
    return {
        cells[0]: cells[1:] for cells in ([cell.strip() for cell in row.strip("| ").split("|")] for row in rows if row.startswith("| "))
    }


def test_without_results_every_section_says_how_to_get_them():
    files = _page.files({})
    assert list(files) == ["benchmarks.md"]
    for topic in _page.TOPICS:
        assert f"`python -m benchmarks {topic.name}`" in files["benchmarks.md"]


def test_every_section_has_a_benchmark_of_make_bench():
    from benchmarks._catalogue import suite

    assert {topic.name for topic in _page.TOPICS} == {entry.name for entry in suite()}


def test_all_sections_are_written(records):
    files = _page.files(records)
    page = files["benchmarks.md"]
    assert "Not measured yet" not in page
    assert page.count("commit 0123456789ab") == len(_page.TOPICS)
    for path in set(files) - {"benchmarks.md"}:
        ET.fromstring(files[path])
        assert f"({path})" in page
    assert page.count("](images/") == len(files) - 1
    assert files == _page.files(records)


def test_the_fastest_stands_first_and_what_was_left_out_is_told(records):
    section = _page.files(records)["benchmarks.md"].split("## HTTP, a tiny model")[1]
    assert section.index("| probe ") < section.index("| **edgekit** ") < section.index("| triton ")
    assert "Left out: kserve (no network)." in section


def test_aims_are_judged(records):
    found = aims(_page.files(records)["benchmarks.md"])
    assert found["HTTP, tiny MLP, 16 connections: rate over triton's"] == [">= 2.5x", "3x", "yes"]
    assert found["requests/s there"] == [">= 30,000", "30,000 (27,000–33,000)", "yes"]
    assert found["HTTP, angle classifier: rate over the bare engine's"][2] == "**no**"  # 30,000 of 50,000
    assert found["p99 during swaps, a tiny model"] == ["<= 1.2x", "1.15 (1.1–1.3)x", "yes"]
    assert found["start to first answer over a bare script's, the worst"][2] == "**no**"
    assert found["soak of 600 s: wrong answers, crashes"][2] == "yes"
    what = "1,000 requests/s for 2 min, a real model, two cores: p99"
    assert found[what] == ["< 100 ms, no errors", "12.5 ms, no errors", "yes"]
    assert found["two cores over one, of what the load left of them, batch fixed"] == [">= 1.8x", "1.9 (1.8–2)x", "yes"]


def test_real_runs_stand_beside_what_was_predicted_with_the_reason(records, make_record):
    page = _page.files(records)["benchmarks.md"]
    section = page.split("## Routing among real faults")[1].split("\n## ")[0]
    why = {
        tuple(cells[1:3]): cells[-2]
        for cells in ([cell.strip() for cell in row.split("|")] for row in section.splitlines() if row.count("|") > 9)
    }
    assert why["**steady**", "edgekit"] == "as predicted"
    drift = "the models ran 1.25x (device) and 1.00x (cloud) as long as alone"
    assert why["", "local-only"] == f"more than drift; {drift}"  # the last of them, cloud-down's, of which nothing else was measured
    assert why["", "cloud-only"] == f"more than drift; {drift}; cloud waited 4.5 ms a request for the core that all but the device share"
    assert "drift: the models ran 1.25x (device) and 1.00x (cloud) as long as alone" in section
    assert "11 of the cloud's 50 runs were for nobody; cloud and router waited 21 ms a request" in section  # it answered 39 of 97
    found = aims(page)
    assert found["for real, the cloud dies: errors that the device alone has not"] == ["0", "1 (device alone: 1)", "yes"]
    assert found["for real, the cloud returns: noticed after"] == ["<= 3 s", "0.75 s", "yes"]
    worse = [row | {"errors_in_fault": 2} if (row["scenario"], row["policy"]) == ("cloud-down", "edgekit") else row for row in ROUTING_ROWS]
    page = _page.files(records | {"routing": make_record("routing", OTHERS["routing"] | {"rows": worse})})["benchmarks.md"]
    assert aims(page)["for real, the cloud dies: errors that the device alone has not"][2] == "**no**"


def test_a_run_that_loadgen_refuses_is_told_and_misses_the_aim(records):
    page = _page.files(records)["benchmarks.md"]
    assert "**not valid**: Min queries satisfied: no" in page
    assert aims(page)["LoadGen through the router: valid runs"] == ["2 of 2", "1", "**no**"]


def test_errors_at_a_constant_rate_are_told(records, make_record):
    document = OTHERS["sustained"] | {"errors": {"503": 7}, "met": False}
    page = _page.files(records | {"sustained": make_record("sustained", document)})["benchmarks.md"]
    assert aims(page)["1,000 requests/s for 2 min, a real model, two cores: p99"][1:] == ["12.5 ms, 7 errors (503: 7)", "**no**"]


def test_wrong_answers_of_a_soak_miss_the_aim(records, make_record):
    for change in ({"wrong_count": 1}, {"crashed": -11}):
        found = aims(_page.files(records | {"soak": make_record("soak", OTHERS["soak"] | change)})["benchmarks.md"])
        assert found["soak of 600 s: wrong answers, crashes"][2] == "**no**"


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_document_of_another_shape_is_named(records, make_record, name):
    with pytest.raises(ValueError, match=rf"{name}\.json: not as the page reads it.*python -m benchmarks {name}"):
        _page.files(records | {name: make_record(name, {"other": 1})})


@pytest.mark.parametrize(("name", "lacking"), [("serve", "1, 16"), ("serve_classifier", "16"), ("serve_grpc", "16")])
def test_figures_for_other_connections_are_refused(records, make_record, side_by_side, name, lacking):
    server = side_by_side.servers["edgekit"]
    server.connections = {"4": server.connections["16"]}
    with pytest.raises(ValueError, match=rf"{name}\.json: edgekit has no figures for {lacking} connections"):
        _page.files(records | {name: make_record(name, side_by_side)})


def test_without_the_peers_there_are_no_aims_beside_them(records, make_record, side_by_side):
    for name in ("triton", "mlserver", "probe"):
        del side_by_side.servers[name]
    found = aims(_page.files(records | {"serve": make_record("serve", side_by_side)})["benchmarks.md"])
    assert "requests/s there" in found
    assert not [what for what in found if "mlserver" in what or "HTTP, one connection" in what]


def test_two_machines_are_told_apart(records, make_record):
    other = records["soak"].machine
    changed = type(other)(**{field: getattr(other, field) for field in other.__struct_fields__} | {"cpu": "another"})
    text = _page.files(records | {"soak": make_record("soak", OTHERS["soak"], machine=changed)})["benchmarks.md"]
    assert "another, 2 cores" in text
    assert "(soak)." in text


def test_figures_are_told_with_their_range():
    assert told(Spread(1234.0, 1000.0, 2000.0)) == "1,234 (1,000–2,000)"
    assert told(Spread(1.2345, 1.2344, 1.2346)) == "1.23"
    assert at_least("a", 2.0, Spread(2.0, 1.0, 3.0)).met
    assert not at_most("a", 1.0, Spread(1.01, 0.9, 1.2)).met


def test_a_table_has_a_cell_for_each_column():
    lines = markdown(["a", "b"], [["x", 1], ["y", 2]])
    assert len({line.count("|") for line in lines}) == 1
