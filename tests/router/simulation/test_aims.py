"""The router keeps what docs/simulation.md says of it, scenario by scenario, on one trace of each."""

import pytest

from edgekit.router.simulation import SCENARIOS, make_trace, play
from edgekit.router.simulation._aims import FAULT_ATTAINMENT, MOST_DUPLICATES, STEADY_ATTAINMENT


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_hits_duplicates_and_budgets(name):
    """6000 requests are 40 s: each fault comes at least once."""
    trace = make_trace(name, 6000, 11)
    run = play(trace, ["edgekit"], 11)["edgekit"]
    assert run.attainment_vs_oracle >= (FAULT_ATTAINMENT if trace.fault else STEADY_ATTAINMENT)
    assert run.duplicates <= MOST_DUPLICATES
    assert run.budget_overruns == 0.0
