"""Device or cloud, by deadline: one state machine that decides (`Pilot`), and the router as a library and as a server."""

from edgekit.router._breaker import Breaker, BreakerPolicy, BreakerState, HedgeThrottle
from edgekit.router._core import RouterCore, serve_router
from edgekit.router._decide import Decision, Health, Reason, RequestFacts, Tier, TierEstimate, decide, margin_s
from edgekit.router._estimators import CloudEstimator
from edgekit.router._pilot import Pilot, PilotOptions
from edgekit.router._policy import Policy
from edgekit.router._policy_file import read_policy
from edgekit.router._router import Router, RouteResult, RouterOptions
from edgekit.router._tally import Tally, TallyRow

__all__ = [
    "Breaker",
    "BreakerPolicy",
    "BreakerState",
    "CloudEstimator",
    "Decision",
    "Health",
    "HedgeThrottle",
    "Pilot",
    "PilotOptions",
    "Policy",
    "Reason",
    "RequestFacts",
    "RouteResult",
    "Router",
    "RouterCore",
    "RouterOptions",
    "Tally",
    "TallyRow",
    "Tier",
    "TierEstimate",
    "decide",
    "margin_s",
    "read_policy",
    "serve_router",
]
