"""Device or cloud, by deadline: one state machine that decides (`Pilot`), and the router as a library and as a server."""

from edgekit.router._core import RouterCore, serve_router
from edgekit.router._pilot import Pilot, PilotOptions
from edgekit.router._policy import Policy
from edgekit.router._policy_file import read_policy
from edgekit.router._router import Router, RouteResult, RouterOptions
from edgekit.router._tally import Tally, TallyRow

__all__ = [
    "Pilot",
    "PilotOptions",
    "Policy",
    "RouteResult",
    "Router",
    "RouterCore",
    "RouterOptions",
    "Tally",
    "TallyRow",
    "read_policy",
    "serve_router",
]
