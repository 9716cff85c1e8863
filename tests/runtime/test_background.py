"""`run_behind`: the result or the error of the work, from a thread that others go before."""

import os
import sys
import threading

import pytest

from edgekit.runtime._background import run_behind


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="niceness is a thread's own on Linux only")
def test_it_is_nice_and_nobody_else_becomes_so():
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert run_behind(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == min(19, before + 10)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_errors_come_back():
    with pytest.raises(ZeroDivisionError):
        run_behind(lambda: 1 // 0)
    assert run_behind(lambda: None) is None
