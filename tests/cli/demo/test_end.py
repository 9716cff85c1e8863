"""The demo ends by itself, Ctrl-C included, and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def processes_with(marker):
    """Ids of processes whose environment carries the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended, or is not ours
    return found


@pytest.fixture
def demo(tmp_path):
    marker = f"EDGEKIT_DEMO_MARKER={tmp_path}"
    environment = {**os.environ, "EDGEKIT_DEMO_MARKER": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [sys.executable, "-m", "edgekit", "demo", "-o", str(tmp_path / "out"), "--json"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell's background job starts with SIGINT ignored, and so would everything below it; at a terminal it is not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no other thread runs here
    )
    yield process, marker
    process.kill()
    process.communicate()
    for left in processes_with(marker):
        os.kill(left, signal.SIGKILL)


def until(stream, words):
    for line in stream:
        if words in line:
            return
    pytest.fail(f"the demo never said {words!r}")


def test_ctrl_c_in_the_middle_leaves_nothing(demo):
    process, marker = demo
    until(process.stderr, "throttled:")
    assert len(processes_with(marker)) > 4
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert processes_with(marker) == []


def test_it_runs_to_its_end_and_says_what_it_measured(demo, tmp_path):
    process, marker = demo
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["exact_lines"] == report["rendered_lines"] == 10
    assert {row["device"]: row["verified"] for row in report["builds"]} == {
        "jetson-orin": "parser",
        "raspberry-pi-5": "host",
        "iphone-15": "reference",
        "intel-nuc": "host",
        "generic-x86": "host",
    }
    policies = {row["policy"]: row for row in report["policies"]}
    assert policies["local only"]["requests"] == policies["cloud only"]["requests"] == policies["routed"]["requests"] > 20
    # Cut off for a quarter of the run, the cloud alone must miss; the device is well then, so routing must not add to it.
    assert policies["cloud only"]["errors"] > 0
    assert policies["routed"]["errors"] <= policies["cloud only"]["errors"]
    for name in ("ocr.png", "latency.png", "report.json", "ppocr-rec-jetson-orin.edgekit"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert processes_with(marker) == []
