import threading

import pytest

from edgekit.converters import _side_by_side
from edgekit.converters._side_by_side import in_order


@pytest.fixture(params=[1, 3])
def cores(request, monkeypatch):
    monkeypatch.setattr(_side_by_side, "usable_cpus", lambda: request.param)
    return request.param


def test_results_come_in_the_order_of_the_items(cores):
    first_waits = threading.Event()

    def work(item):
        if cores > 1 and item == 0:
            assert first_waits.wait(10)
        if item == 1:
            first_waits.set()
        return item * item

    assert list(in_order(work, range(20))) == [item * item for item in range(20)]


def test_an_error_reaches_the_caller(cores):
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 / item, [2, 1, 0, 1]))


def test_no_more_results_wait_than_there_are_cores(cores):
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    results = in_order(lambda item: item, items())
    assert next(results) == 0
    assert len(taken) <= cores + 1
    results.close()
