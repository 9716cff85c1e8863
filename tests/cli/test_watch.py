"""The table of ``edgekit route --watch``, from a real router and from one in trouble."""

import io
import re

import msgspec
import numpy as np
import pytest

from edgekit.cli import _watch
from edgekit.router import Router, Tally
from edgekit.router._decide import Reason


@pytest.fixture
def state(mlp_bundle):
    with Router(mlp_bundle, "http://127.0.0.1:9", sla_ms=5000, tally=(tally := Tally())) as router:
        for _ in range(4):
            router.infer({"x": np.ones((1, 8), np.float32)})
        return router.explain(), tally.rows(router._clock())


def test_a_router_at_work(state):
    text = "\n".join(_watch.lines_of(*state, "routing on http 8100"))
    assert text.startswith("routing on http 8100\nlast minute: 4 requests (0.1/s), 100.0% in time, 0.0% by the cloud; 0 open")
    (row,) = (line for line in text.splitlines() if line.endswith("mlp"))
    assert row.split()[:5] == ["local_fits", "edge", "4", "100.0%", "0.0%"]
    assert any(line.endswith("  127.0.0.1:9") for line in text.splitlines())
    assert "last decision: edge" in text
    assert "budget" not in text


def test_budgets_problems_and_open_breakers_are_told(state):
    told, rows = state
    told["cloud"][0]["breaker"] = "open"
    told["policy"]["budget"]["hour"] = {
        "spent": {"requests": 7000, "bytes": 2211840, "dollars": 0.0004},
        "limit": {"requests": 20000, "bytes": None, "dollars": 5.0},
    }
    told["policy"]["budget"]["day"] = {
        "spent": {"requests": 7000, "bytes": 2211840, "dollars": 0.0},
        "limit": {"requests": None, "bytes": 5e9, "dollars": None},
    }
    told["policy"]["problem"] = "policy.toml line 3: no"
    text = "\n".join(_watch.lines_of(told, rows, ""))
    assert re.search(r"^left alone  0 of 20 .* 127\.0\.0\.1:9$", text, re.MULTILINE)
    assert "budget of the hour: 7,000 of 20,000 requests, $0.0004 of $5.00\nbudget of the day: 2.2 MB of 5.0 GB\n" in text
    assert "policy: policy.toml line 3: no; the one before stays in force" in text


def test_figures_fit_into_80_columns(state):
    """The longest reason and state that there are; names may be cut."""
    told, rows = state
    told["cloud"][0]["breaker"] = "probing"
    longest = max((reason.value for reason in Reason), key=len)
    row = msgspec.structs.replace(rows[0], reason=longest, tier="cloud", requests=123_456, p50_ms=1234.5, p99_ms=12345.6)
    lines = list(_watch.lines_of(told, [row], ""))
    for name in ("model", "tier"):
        (head,) = (line for line in lines if line.endswith(f"  {name}"))
        assert len(head) <= 80
    (cut,) = (line[:80] for line in lines if line.startswith(longest))
    assert cut.split()[:7] == [longest, "cloud", "123456", "0.0%", "0.0%", "1234.5", "12345.6"]


def test_a_router_without_requests(mlp_bundle):
    with Router(mlp_bundle, sla_ms=50, tally=(tally := Tally())) as router:
        lines = list(_watch.lines_of(tally.explain(), tally.rows(router._clock()), "t"))
    assert lines[1] == "last minute: no request; 0 open"


def test_a_terminal_is_drawn_over_and_never_overrun(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            return 1

    lines = ["x" * 200] * 50
    monkeypatch.setattr(_watch.os, "get_terminal_size", lambda _: _watch.os.terminal_size((80, 24)))
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    _watch.draw(iter(lines))
    drawn = terminal.getvalue().removeprefix("\x1b[H\x1b[J").splitlines()
    assert len(drawn) == 23
    assert {len(line) for line in drawn} == {80}
    monkeypatch.setattr("sys.stdout", plain := io.StringIO())
    _watch.draw(iter(lines))
    assert plain.getvalue() == "\n".join(lines) + "\n\n"
