"""`run_behind`: the result or the error of the work, from a thread that others go before."""

import os
import sys
import threading

import pytest

from edgekit.runtime import _background
from edgekit.runtime._background import may_rise, run_behind

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a policy is a thread's own on Linux only")


def policy():
    return os.sched_getscheduler(threading.get_native_id())


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@ON_LINUX
def test_it_is_idle_where_it_may_come_back_and_nobody_else_becomes_so():
    before = niceness()
    found = run_behind(lambda: (policy(), niceness()))
    assert found == ((os.SCHED_IDLE, before) if may_rise() else (os.SCHED_OTHER, min(19, before + 10)))
    assert (policy(), niceness()) == (os.SCHED_OTHER, before)


@ON_LINUX
def test_threads_that_stay_come_back():
    if not may_rise():
        assert run_behind(policy, starts_threads=True) == os.SCHED_OTHER
        return
    begun, release, seen = threading.Event(), threading.Event(), []

    def stays():
        seen.append(policy())
        begun.set()
        release.wait(10)
        seen.append(policy())

    def work():
        thread = threading.Thread(target=stays)
        thread.start()
        assert begun.wait(10)
        return thread, policy()

    thread, own = run_behind(work, starts_threads=True)
    release.set()
    thread.join()
    assert (own, seen) == (os.SCHED_IDLE, [os.SCHED_IDLE, os.SCHED_OTHER])


@ON_LINUX
def test_what_cannot_come_back_is_nice_and_leaves_no_slow_thread(monkeypatch):
    monkeypatch.setattr(_background, "may_rise", lambda: False)
    before = niceness()
    assert run_behind(lambda: (policy(), niceness())) == (os.SCHED_OTHER, min(19, before + 10))
    assert run_behind(lambda: (policy(), niceness()), starts_threads=True) == (os.SCHED_OTHER, before)


@ON_LINUX
def test_nice_when_asked_so():
    before = niceness()
    assert run_behind(lambda: (policy(), niceness()), idle=False) == (os.SCHED_OTHER, min(19, before + 10))
    assert niceness() == before


@ON_LINUX
@pytest.mark.parametrize("starts_threads", [False, True])
def test_what_takes_too_long_goes_on_beside_the_others(monkeypatch, starts_threads):
    if not may_rise():
        pytest.skip("this process may not raise a thread again")
    monkeypatch.setattr(_background, "_PATIENCE_S", 0.01)

    def work():
        while policy() == os.SCHED_IDLE:
            threading.Event().wait(0.001)
        return policy()

    assert run_behind(work, starts_threads=starts_threads) == os.SCHED_OTHER


@ON_LINUX
def test_without_the_idle_policy_nothing_comes_back(monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    assert not may_rise.__wrapped__()


def test_elsewhere_it_just_runs(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert run_behind(threading.get_ident, starts_threads=True) == threading.get_ident()


def test_errors_come_back():
    with pytest.raises(ZeroDivisionError):
        run_behind(lambda: 1 // 0)
    assert run_behind(lambda: None) is None
