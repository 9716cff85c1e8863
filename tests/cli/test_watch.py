"""The table of ``edgekit route --watch``, from a real router and from one in trouble."""

import io

import numpy as np
import pytest

from edgekit.cli import _watch
from edgekit.router import Router, Tally


@pytest.fixture
def state(mlp_bundle):
    with Router(mlp_bundle, "http://127.0.0.1:9", sla_ms=5000, tally=(tally := Tally())) as router:
        for _ in range(4):
            router.infer({"x": np.ones((1, 8), np.float32)})
        return router.explain(), tally.rows(router._clock())


def test_a_router_at_work(state):
    text = "\n".join(_watch.lines_of(*state, "routing on http 8100"))
    assert text.startswith("routing on http 8100\nlast minute: 4 requests (0.1/s), 100.0% in time, 0.0% by the cloud; 0 open")
    (row,) = (line for line in text.splitlines() if line.startswith("mlp"))
    assert row.split()[1:7] == ["local_fits", "edge", "4", "100.0%", "100.0%", "0.0%"]
    assert any(line.startswith("http://127.0.0.1:9") for line in text.splitlines())
    assert "last decision: edge" in text
    assert "budget" not in text


def test_budgets_problems_and_open_breakers_are_told(state):
    told, rows = state
    told["cloud"][0]["breaker"] = "open"
    told["policy"]["budget"]["hour"] = {
        "spent": {"requests": 7, "bytes": 0, "dollars": 0.0},
        "limit": {"requests": 20, "bytes": None, "dollars": None},
    }
    told["policy"]["problem"] = "policy.toml line 3: no"
    text = "\n".join(_watch.lines_of(told, rows, ""))
    assert "http://127.0.0.1:9  left alone" in text
    assert "budget of the hour: 7 of 20 requests" in text
    assert "policy: policy.toml line 3: no; the one before stays in force" in text


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
