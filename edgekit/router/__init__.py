"""Device or cloud, by deadline: estimators, the decision, hedging, breaker, and the router as a library and as a server."""

from edgekit.router._breaker import Breaker, BreakerPolicy, BreakerState, HedgeThrottle
from edgekit.router._core import RouterCore, serve_router
from edgekit.router._decide import Decision, Health, Reason, RequestFacts, Tier, TierEstimate, decide, margin_s
from edgekit.router._estimators import CloudEstimator, LocalEstimator
from edgekit.router._flight import Flight
from edgekit.router._policy import Policy
from edgekit.router._policy_file import read_policy
from edgekit.router._router import Router, RouteResult, RouterOptions

__all__ = [
    "Breaker",
    "BreakerPolicy",
    "BreakerState",
    "CloudEstimator",
    "Decision",
    "Flight",
    "Health",
    "HedgeThrottle",
    "LocalEstimator",
    "Policy",
    "Reason",
    "RequestFacts",
    "RouteResult",
    "Router",
    "RouterCore",
    "RouterOptions",
    "Tier",
    "TierEstimate",
    "decide",
    "margin_s",
    "read_policy",
    "serve_router",
]
