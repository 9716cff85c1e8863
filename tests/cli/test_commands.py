"""Commands as a script uses them: JSON on stdout, one line on stderr, exit codes 0, 1 and 2."""

import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from edgekit.bundle import Bundle


def test_devices_as_json_has_what_scripts_read(edgekit):
    rows = edgekit("devices", "--json").json
    assert len(rows) >= 20
    assert all({"id", "engine", "precisions", "memory_bytes"} <= row.keys() for row in rows)
    assert edgekit("--json", "devices").json == rows


@pytest.mark.parametrize("variable", ["EDGEKIT_LOG_FORMAT", "EDGEKIT_LOG_LEVEL"])
def test_how_a_process_logs_is_checked(variable):
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "devices"], env=os.environ | {variable: "loud"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"edgekit: {variable}: 'loud'; expected ")
    assert done.stderr.count("\n") == 1


def test_devices_show_and_probe(edgekit):
    assert "TensorRT" in edgekit("devices", "show", "jetson-orin").out or "tensorrt" in edgekit("devices", "show", "jetson-orin").out
    found = edgekit("devices", "probe", "--device", "jetson-orin", "--json").json
    assert found["cpu"]["cores"] >= 1
    assert any("tensorrt" in sentence for sentence in found["contradictions"])


@pytest.mark.slow
def test_build_inspect_verify_run_bench_finalize(edgekit, tiny_mlp, tmp_path):
    path = tmp_path / "mlp.edgekit"
    built = edgekit("build", tiny_mlp, "--device", "generic-x86", "-o", path, "--name", "mlp", "--json")
    assert built.status == 0, built.err
    assert {"bundle", "device", "engine", "precision", "verified", "metrics", "seconds", "bytes"} <= built.json.keys()
    assert built.json["verified"] == "host"
    assert {"max_abs", "max_rel", "cosine", "top1_agreement"} <= built.json["metrics"]["probabilities"].keys()

    assert edgekit("inspect", path, "--json").json["digest"] == Bundle.open(path).digest
    assert edgekit("verify", path, "--json").json["ok"] is True

    np.save(tmp_path / "x.npy", np.ones((3, 8), np.float32))
    done = edgekit("run", path, "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "y.npz", "--json")
    assert done.json["outputs"]["probabilities"]["shape"] == [3, 4]
    told = edgekit("run", path, "--input", f"x={tmp_path / 'x.npy'}").out
    assert re.fullmatch(r"probabilities: float32, \[3,4\], min 0\.\d+, max 0\.\d+\n", told)
    with np.load(tmp_path / "y.npz") as outputs:
        np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, rtol=1e-5)

    measured = edgekit("bench", path, "--seconds", "0.3", "--json").json
    keys = {"p50_ms", "p95_ms", "p99_ms", "throughput_per_s"}
    assert keys | {"rss_bytes"} <= measured.keys()
    assert keys <= measured["bare_engine"].keys()

    receipt = edgekit("finalize", path, "--json").json
    assert receipt["verified"] == "host"
    assert receipt["digest"] == Bundle.open(path).digest


@pytest.mark.slow
def test_the_engine_is_told_what_the_flags_say(edgekit, mlp_bundle, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 8), np.float32))
    kept = tmp_path / "kept"
    flags = ["--threads", "1", "--accelerator", "cpu", "--engine-cache", kept]
    assert edgekit("run", mlp_bundle, "--input", f"x={tmp_path / 'x.npy'}", *flags, "--json").status == 0
    assert any(path.is_file() for path in kept.rglob("*"))  # the compiled form
    done = edgekit("bench", mlp_bundle, "--seconds", "0.1", *flags, "--hint", "throughput", "--json").json
    assert done["threads"] == 1
    assert edgekit("verify", mlp_bundle, *flags[2:], "--json").json["ok"]


def test_several_devices_are_several_bundles(edgekit, tiny_mlp, tmp_path):
    done = edgekit("build", tiny_mlp, "--device", "generic-x86", "--device", "intel-nuc", "-o", tmp_path / "all", "--json")
    assert [row["engine"] for row in done.json] == ["onnxruntime", "openvino"]
    assert len(list((tmp_path / "all").iterdir())) == 2


WRONG = {
    "no command": (["buidl"], 2, "buidl"),
    "no model": (["build", "--device", "generic-x86"], 2, "Missing argument 'MODEL'; see edgekit build --help"),
    "unknown device": (["build", "{model}", "--device", "jetson-orinn"], 2, "jetson-orin"),
    "bad shape": (["build", "{model}", "--device", "generic-x86", "--shape", "x=1,a"], 2, "NAME=SIZE"),
    "bad precision": (["build", "{model}", "--device", "generic-x86", "--precision", "fp8"], 2, "fp8"),
    "int8": (["build", "{model}", "--device", "generic-x86", "--precision", "int8"], 2, "int8"),
    "missing model": (["build", "none.onnx", "--device", "generic-x86"], 1, "none.onnx"),
    "no bundle": (["inspect", "none.edgekit"], 1, "none.edgekit"),
    "bad input": (["run", "{bundle}", "--input", "x"], 2, "NAME=FILE"),
    "missing input file": (["run", "{bundle}", "--input", "x=none.npy"], 1, "none.npy"),
    "input that is no array": (["run", "{bundle}", "--input", "x={model}"], 2, "not a .npy file, or one with Python objects; expected"),
    "wrong input name": (["run", "{bundle}", "--input", "y={array}"], 2, "'y'"),
    "no seconds": (["bench", "{bundle}", "--seconds", "0"], 2, "--seconds 0"),
    "bad hint": (["bench", "{bundle}", "--hint", "fast"], 2, "latency"),
    "threads below none": (["run", "{bundle}", "--input", "x={array}", "--threads", "-1"], 2, "--threads"),
    "no such accelerator": (["verify", "{bundle}", "--accelerator", "tpu"], 1, "tpu"),
    "bad address": (["serve", "{bundle}", "--http", "8000"], 2, "HOST:PORT"),
    "nothing to listen on": (["serve", "{bundle}", "--http", "off", "--grpc", "off"], 2, "both off"),
    "no way to the router": (["route", "--edge", "{bundle}", "--sla-ms", "5", "--http", "off", "--grpc", "off"], 2, "both off"),
    "a file for a folder": (["demo", "-o", "array.npy"], 1, "array.npy: is there already, as a file"),
    "bad port": (["collector", "--http", "127.0.0.1:70000"], 2, "HOST:PORT"),
    "watch and JSON": (["route", "--edge", "{bundle}", "--sla-ms", "5", "--watch", "--json"], 2, "--watch"),
    "bad SLA": (["route", "--edge", "{bundle}", "--sla-ms", "0"], 2, "--sla-ms"),
    "no repository": (["cloud", "up", "-r", "none"], 2, "none"),
    "no batch": (["cloud", "repository", "{bundle}", "-o", "models", "--max-batch", "-1"], 2, "max batch: -1; expected 1 or more"),
    "no threads": (["cloud", "repository", "{bundle}", "-o", "models", "--threads", "-1"], 2, "threads: -1; expected 0 or more"),
    "two hosts": (["cloud", "up", "-r", "none", "--grpc", "0.0.0.0:1"], 2, "--grpc"),
    "no collector URL": (["cloud", "report", "--triton", "http://127.0.0.1:9", "--collector", "nonsense"], 2, "collector URL"),
    "no Triton URL": (["cloud", "report", "--triton", "nonsense", "--collector", "http://127.0.0.1:9"], 2, "nonsense"),
    "no interval": (["cloud", "report", "--triton", "http://x", "--collector", "http://x", "--interval", "0"], 2, "--interval"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line_and_its_exit_code(edgekit, case, tiny_mlp, mlp_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "array.npy", np.zeros((1, 8), np.float32))
    words, status, says = WRONG[case]
    values = {"model": tiny_mlp, "bundle": mlp_bundle, "array": tmp_path / "array.npy"}
    done = edgekit(*(word.format(**values) for word in words))
    assert done.status == status, done.err
    assert says in done.error
    assert done.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["array.npy"]


@pytest.mark.parametrize("group", [[], ["models"], ["policy"], ["cloud"]])
def test_without_a_command_the_help_is_shown_as_it_is(edgekit, group):
    done = edgekit(*group)
    assert (done.status, done.out) == (2, "")
    assert done.err == edgekit(*group, "--help").out
    assert "..." not in done.err.replace("ARGS]...", "")  # what each command does, unabridged in 80 columns


@pytest.mark.parametrize("command", ["serve", "route", "collector"])
def test_a_port_in_use_is_one_line_that_names_the_flag(edgekit, command, mlp_bundle, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = {
            "serve": ["serve", mlp_bundle, "--grpc", "off"],
            "route": ["route", "--edge", mlp_bundle, "--sla-ms", "50", "--grpc", "off"],
            "collector": ["collector", "--store", tmp_path / "store", "--otlp-grpc", "off"],
        }[command]
        done = edgekit(*arguments, "--http", address)
    assert done.status == 1
    assert "in use" in done.error
    assert "--http" in done.error


def test_a_damaged_bundle_is_named(edgekit, mlp_bundle, tmp_path):
    data = bytearray(mlp_bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.edgekit").write_bytes(data)
    done = edgekit("verify", tmp_path / "bad.edgekit")
    assert done.status == 1
    assert "bad.edgekit" in done.error


def test_debug_shows_the_traceback(edgekit):
    done = edgekit("inspect", "none.edgekit", "--debug")
    assert "Traceback" in done.err
    assert done.status == 1


def test_version(edgekit):
    from edgekit import __version__

    assert edgekit("--version").out.strip() == __version__


def test_json_is_one_document(edgekit, mlp_bundle):
    assert isinstance(json.loads(edgekit("verify", mlp_bundle, "--json").out), dict)
