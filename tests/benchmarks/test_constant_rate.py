"""The open loop: what is due when, what counts from then, and what the figures make of it."""

import asyncio
import sys

import numpy as np
import pytest

from benchmarks import sustained, two_cores
from benchmarks._constant_rate import CHECKED, Connection, HttpPool, Plan, field, pump

EXPECTED = np.array([[0.25, 0.75]], np.float32)


def plan(rate=1000.0, seconds=0.02):
    return Plan(rate, seconds, EXPECTED)


def test_requests_are_due_at_the_rate_whatever_came_back():
    made = plan(rate=1e9, seconds=5e-9)  # all are due at once
    due_s = [made.next_due_s() for _ in range(6)]
    assert due_s[5] is None  # that was all
    assert np.diff(due_s[:5]) == pytest.approx(1e-9, abs=1e-6)
    assert made.sent == 5
    assert not made.done
    assert plan(rate=1e-6, seconds=3e6).next_due_s() is not None  # the first is due at the beginning
    slow = plan(rate=1e-6, seconds=3e6)
    slow.next_due_s()
    assert slow.next_due_s() is None  # and the second not for days


def test_latency_counts_from_when_it_was_due():
    made = plan()
    made.answered(made.began_s - 2.0, "", EXPECTED.tobytes())
    assert made.latency_s[0] >= 2.0


def test_wrong_answers_and_errors_count_as_such():
    made = plan()
    made.answered(made.began_s, "status 503", b"")
    for _ in range(2 * CHECKED):
        made.answered(made.began_s, "", (EXPECTED + 1).tobytes())
    assert made.errors == {"status 503": 1, "wrong numbers": 2}
    assert made.answers == 1 + 2 * CHECKED


def test_fields_of_a_head():
    head = b"http/1.1 200 ok\r\ncontent-length: 17\r\ninference-header-content-length: 9"
    assert field(head, b"content-length") == 17
    assert field(head, b"inference-header-content-length") == 9
    assert field(head, b"other") == 0


class Echo(asyncio.Protocol):
    """Answers each request of four bytes, in two pieces; every third is refused."""

    def __init__(self):
        self.count = 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        for _ in range(len(data) // 4):
            self.count += 1
            status = b"200 OK" if self.count % 3 else b"503 No"
            self.transport.write(b"HTTP/1.1 %s\r\nInference-Header-Content-Length: 2\r\nContent-Length: 10\r\n\r\n{}" % status)
            self.transport.write(EXPECTED.tobytes())


def test_the_generator_sends_all_and_hears_all():
    async def run():
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
        made = plan(rate=3000.0, seconds=0.01)
        pool = HttpPool(made, b"ask!")
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: Connection(pool), *server.sockets[0].getsockname())
        await pump(pool)
        transport.abort()
        server.close()
        return made

    made = asyncio.run(run())
    assert made.done
    assert made.errors == {"status 503": 10}
    assert len(made.latency_s) == 20
    assert (np.diff(made.due_s) > 0).all()


def test_figures_by_minute():
    due_s, latency_s = np.arange(0.0, 120.0, 0.5), np.full(240, 0.010)
    latency_s[:120] = 0.020
    found = sustained.figures(due_s, latency_s, {"status 503": 2}, 120.0)
    assert found["requests"] == 242
    assert found["answered_per_s"] == pytest.approx(2.0)
    assert found["p99_ms_by_minute"] == pytest.approx([20.0, 10.0])
    assert (found["p50_ms"], found["max_ms"]) == (pytest.approx(15.0), pytest.approx(20.0))
    assert not sustained.met(found, 100.0)  # two failed
    assert sustained.met(found | {"errors": {}}, 100.0)
    assert not sustained.met(found | {"errors": {}}, 5.0)
    nothing = sustained.figures(np.array([]), np.array([]), {}, 10.0)
    assert nothing["answered_per_s"] == 0
    assert not sustained.met(nothing, 100.0)


def test_slope_is_that_of_the_second_half():
    assert sustained.slope([(t, 100.0 if t < 50 else 100.0 + (t - 50)) for t in range(100)]) == pytest.approx(1.0)
    assert sustained.slope([(0.0, 5.0)]) == 0


def test_two_cores_says_what_the_load_took():
    def rows(rate, cpu_us, busy):
        return [{"requests_per_s": rate, "cpu_us": cpu_us, "load_busy": busy} for _ in range(3)]

    rounds = {"0": rows(500.0, 1600.0, 0.1), "0,1": rows(900.0, 1700.0, 0.2)}
    bare = {"0": [600.0] * 3, "0,1": [1150.0] * 3}
    found = two_cores.summary(bare, rounds, shared=True)
    assert found["scaling"]["median"] == pytest.approx(1.8)
    assert found["scaling_of_what_was_left"]["median"] == pytest.approx(2.0)  # 900 of 1.8 cores, 500 of one
    assert found["scaling_by_cpu"]["median"] == pytest.approx(2 * 1600 / 1700)
    assert found["of_the_bare_engine"]["0"]["median"] == pytest.approx(5 / 6)
    alone = two_cores.summary(bare, rounds, shared=False)
    assert alone["scaling_of_what_was_left"] == alone["scaling"]


def test_one_core_has_its_turn_around_that_of_two():
    """On a machine that becomes slower all the time the two still compare as they are."""
    now_s, lengths = 0.0, []

    def turn(cores, seconds):
        nonlocal now_s
        middle_s, now_s = now_s + seconds / 2, now_s + seconds
        lengths.append((cores, seconds))
        return {"requests_per_s": (1000.0 - 50 * middle_s) * (2 if cores == "0,1" else 1)}

    found = two_cores.around(turn, 4.0)
    assert lengths == [("0", 2.0), ("0,1", 4.0), ("0", 2.0)]
    assert found["0,1"]["requests_per_s"] == pytest.approx(2 * found["0"]["requests_per_s"])


@pytest.mark.parametrize("module", [sustained, two_cores])
def test_help_tells_the_method(module, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert "does not show" in capsys.readouterr().out
