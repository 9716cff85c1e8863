"""The router and simpler policies in virtual time, on seeded and recorded traces, against what one could reach who knew the future."""

from edgekit.router.simulation._aims import Aim
from edgekit.router.simulation._oracle import Oracle, clairvoyant
from edgekit.router.simulation._recorded import COLUMNS, read_trace
from edgekit.router.simulation._run import DEFAULT_REQUESTS, DEFAULT_SEEDS, POLICIES, THRESHOLDS, Report, play, simulate, steering
from edgekit.router.simulation._scenarios import COMMON, SCENARIOS, Scenario, make_trace
from edgekit.router.simulation._score import Interval, Row, Run
from edgekit.router.simulation._steps import Steps
from edgekit.router.simulation._trace import Endpoint, State, Trace
from edgekit.router.simulation._world import World

__all__ = [
    "COLUMNS",
    "COMMON",
    "DEFAULT_REQUESTS",
    "DEFAULT_SEEDS",
    "POLICIES",
    "SCENARIOS",
    "THRESHOLDS",
    "Aim",
    "Endpoint",
    "Interval",
    "Oracle",
    "Report",
    "Row",
    "Run",
    "Scenario",
    "State",
    "Steps",
    "Trace",
    "World",
    "clairvoyant",
    "make_trace",
    "play",
    "read_trace",
    "simulate",
    "steering",
]
