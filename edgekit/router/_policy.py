"""What the operator decides, and what that means for a request. Data and pure functions; `edgekit.router._policy_file` reads it from TOML.

What is said of a model holds before what is said by default, and a priority's SLA before the SLA of all priorities. A key that is left out anywhere means what
its documentation here says; the router's own ``sla_ms`` is the last resort.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgekit.router._budgets import BudgetLimits, Limit
from edgekit.router._cascade import ConfidenceKind, ConfidenceRule
from edgekit.router._events import Terms
from edgekit.router._retry import RetryLimits
from edgekit.runtime._trial import split_position

__all__ = [
    "NO_POLICY",
    "BudgetSection",
    "CanarySection",
    "CascadeSection",
    "DataPolicy",
    "DefaultSection",
    "HedgeSection",
    "LimitSection",
    "ModelSection",
    "Policy",
    "PolicyFile",
    "PrioritySection",
    "RetrySection",
    "ShadowSection",
]

DataPolicy = Literal["edge-only", "cloud-allowed"]
_MAX_MS = 1e9

Milliseconds = Annotated[float, Meta(gt=0, lt=_MAX_MS, description="milliseconds, a number above 0")]
Seconds = Annotated[float, Meta(gt=0, lt=1e6, description="seconds, a number above 0")]
Share = Annotated[float, Meta(ge=0, le=1, description="a share from 0 to 1")]
Count = Annotated[int, Meta(ge=0, description="a whole number, 0 or more")]
Dollars = Annotated[float, Meta(ge=0, lt=1e12, description="dollars, a number of 0 or more")]
Rate = Annotated[float, Meta(ge=0, lt=1e6, description="a number per second, 0 or more")]
Number = Annotated[float, Meta(gt=-1e38, lt=1e38, description="a number")]
Text = Annotated[str, Meta(min_length=1, description="text that is not empty")]
Data = Annotated[DataPolicy, Meta(description='"edge-only" or "cloud-allowed"')]
Kind = Annotated[ConfidenceKind, Meta(description='"probabilities", "logits" or "score"')]
Tiers = Annotated[Literal["edge", "cloud", "both"], Meta(description='"edge", "cloud" or "both"')]
Switch = Annotated[bool, Meta(description="true or false")]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""


class PrioritySection(_Section, frozen=True):
    """``[default.priority.N]`` and ``[models.NAME.priority.N]``: requests whose parameter ``priority`` is N (1 is the most urgent, 2 the default).

    Attributes:
        sla_ms: within how many milliseconds of its acceptance a request must be answered, unless it brings a deadline.
    """

    sla_ms: Milliseconds


class CascadeSection(_Section, frozen=True):
    """``[models.NAME.cascade]``: ask the cloud when the device is not sure of its answer.

    Attributes:
        below: escalate answers whose confidence is below.
        output: that tells how sure the answer is; needed when there are several numeric ones.
        kind: see `ConfidenceRule`.
        every_s: at most one escalation in this time.
        audit_share: of the sure answers that the cloud is asked about all the same, after the client has its answer.
    """

    below: Number
    output: Text | None = None
    kind: Kind = "probabilities"
    every_s: Seconds = 2.0
    audit_share: Share = 0.001


class CanarySection(_Section, frozen=True):
    """``[models.NAME.canary]``: a new version for a share of the requests that name none.

    Attributes:
        version: of the model, on that tier.
        share: of the requests. One sequence, one ``split_key`` and one request id always get the same version.
        tier: whose version it is.
    """

    version: Text
    share: Share
    tier: Tiers = "both"


class ShadowSection(_Section, frozen=True):
    """``[models.NAME.shadow]``: the cloud gets copies of requests that the device answered; the answers are compared and thrown away.

    Attributes:
        share: of the requests that the device answers.
        version: that the copies name; the cloud's default when left out.
    """

    share: Share
    version: Text | None = None


class DefaultSection(_Section, frozen=True):
    """``[default]``: every model that says nothing else.

    Attributes:
        sla_ms: see `PrioritySection`; the router's own when left out.
        priority: by priority.
        data: ``edge-only`` never leaves the device, whatever happens.
        hedge: the second tier may be asked before the first has failed.
        coalesce: identical requests in flight share one answer. Not for models whose answers depend on more than their inputs.
    """

    sla_ms: Milliseconds | None = None
    priority: dict[str, PrioritySection] = {}
    data: Data = "cloud-allowed"
    hedge: Switch = True
    coalesce: Switch = False


class ModelSection(_Section, frozen=True):
    """``[models.NAME]``: one model. ``sla_ms``, ``priority``, ``data``, ``hedge`` and ``coalesce`` as in `DefaultSection`.

    Attributes:
        cascade, canary, shadow: off when left out.
    """

    sla_ms: Milliseconds | None = None
    priority: dict[str, PrioritySection] = {}
    data: Data | None = None
    hedge: Switch | None = None
    coalesce: Switch | None = None
    cascade: CascadeSection | None = None
    canary: CanarySection | None = None
    shadow: ShadowSection | None = None


class LimitSection(_Section, frozen=True):
    """``[budget.per_hour]`` and ``[budget.per_day]``: the most that any such time may hold; no limit where left out, 0 for nothing.

    Attributes:
        requests: sent to the cloud: first attempts, hedges, retries, escalations, audits and shadows.
        bytes: of their tensors.
        dollars: at the prices of ``[budget]``.
    """

    requests: Count | None = None
    bytes: Count | None = None
    dollars: Dollars | None = None


class BudgetSection(_Section, frozen=True):
    """``[budget]``: what the cloud may cost, all models together.

    Attributes:
        dollars_per_request: price of a request.
        dollars_per_gb: price of 1e9 bytes of tensors sent.
        per_hour, per_day: see `LimitSection`.
    """

    dollars_per_request: Dollars = 0.0
    dollars_per_gb: Dollars = 0.0
    per_hour: LimitSection = LimitSection()
    per_day: LimitSection = LimitSection()


class HedgeSection(_Section, frozen=True):
    """``[hedge]``: requests that both tiers may work on at once, since the first was slow.

    Attributes:
        share: of the requests.
    """

    share: Share = 0.02


class RetrySection(_Section, frozen=True):
    """``[retry]``: what may be tried again, see `RetryLimits`.

    Attributes:
        share: of the requests of the window.
        floor_per_s: retries a second that are always allowed.
        window_s: seconds looked back.
    """

    share: Share = 0.2
    floor_per_s: Rate = 1.0
    window_s: Seconds = 10.0


class PolicyFile(_Section, frozen=True):
    """The file.

    Attributes:
        format: of the file; 1.
        default: every model.
        models: by name.
        budget: what the cloud may cost.
        hedge: what both tiers may work on.
        retry: what may be tried again.
    """

    format: Literal[1] = 1
    default: DefaultSection = DefaultSection()
    models: dict[str, ModelSection] = {}
    budget: BudgetSection = BudgetSection()
    hedge: HedgeSection = HedgeSection()
    retry: RetrySection = RetrySection()


class Policy:
    """A policy file, worked out so that a request costs two look-ups. Never changes: a reload makes another one.

    Args:
        file: checked, see `edgekit.router._policy_file.parse_policy`.

    Attributes:
        limits: of the budgets.
        retry: of the retry budget.
    """

    def __init__(self, file: PolicyFile) -> None:
        self.file = file
        self.limits = BudgetLimits(_limit(file.budget.per_hour), _limit(file.budget.per_day))
        self.retry = RetryLimits(file.retry.share, file.retry.floor_per_s, file.retry.window_s)
        self._default = _terms(file, ModelSection())
        self._terms = {name: _terms(file, model) for name, model in file.models.items()}
        self._rules = {
            name: ConfidenceRule(model.cascade.output or "", model.cascade.kind)
            for name, model in file.models.items()
            if model.cascade is not None
        }
        self._sla_s = {(name, int(text)): priority.sla_ms / 1e3 for name, text, priority in _priorities(file)}
        self._sla_of_any_s = {name: model.sla_ms / 1e3 for name, model in file.models.items() if model.sla_ms is not None}

    def terms(self, model: str) -> Terms:
        """What holds for the model's requests."""
        return self._terms.get(model, self._default)

    def sla_s(self, model: str, priority: int) -> float | None:
        """The promise for a request without a deadline; ``None`` for the router's own."""
        for found in (self._sla_s.get((model, priority)), self._sla_s.get(("", priority)), self._sla_of_any_s.get(model)):
            if found is not None:
                return found
        sla_ms = self.file.default.sla_ms
        return None if sla_ms is None else sla_ms / 1e3

    def confidence_rule(self, model: str) -> ConfidenceRule | None:
        """How sure the model is of an answer is told by this; ``None`` where nobody asks."""
        return self._rules.get(model)

    def canary_version(self, model: str, tier: str, key: str) -> str:
        """The version that ``tier`` (``edge`` or ``cloud``) is asked for; empty for its default. The same key always gets the same one."""
        section = self.file.models.get(model)
        canary = section.canary if section is not None else None
        if canary is None or canary.tier not in (tier, "both"):
            return ""
        return canary.version if split_position(key, f"{model}\0{canary.version}") < canary.share else ""

    def has_canary(self, model: str) -> bool:
        """Some requests get another version."""
        section = self.file.models.get(model)
        return section is not None and section.canary is not None

    def shadow(self, model: str) -> ShadowSection | None:
        """Copies of the model's requests go to the cloud."""
        section = self.file.models.get(model)
        return section.shadow if section is not None else None

    def coalesces(self, model: str) -> bool:
        """Identical requests in flight share one answer."""
        section = self.file.models.get(model)
        own = section.coalesce if section is not None else None
        return self.file.default.coalesce if own is None else own

    def described(self, models: tuple[str, ...] = ()) -> dict[str, Any]:
        """What holds, for each model of the file and of ``models``, with every default filled in. JSON-able."""
        names = sorted({*self.file.models, *models})
        return {
            "default": _described(self, ""),
            "models": {name: _described(self, name) for name in names},
            "budget": msgspec.to_builtins(self.file.budget),
            "hedge": msgspec.to_builtins(self.file.hedge),
            "retry": msgspec.to_builtins(self.file.retry),
        }


def _terms(file: PolicyFile, model: ModelSection) -> Terms:
    cascade, shadow = model.cascade, model.shadow
    return Terms(
        edge_only=(model.data or file.default.data) == "edge-only",
        may_hedge=file.default.hedge if model.hedge is None else model.hedge,
        dollars_per_request=file.budget.dollars_per_request,
        dollars_per_byte=file.budget.dollars_per_gb / 1e9,
        escalate_below=cascade.below if cascade is not None else None,
        escalate_every_s=cascade.every_s if cascade is not None else 2.0,
        audit_share=max(cascade.audit_share if cascade is not None else 0.0, shadow.share if shadow is not None else 0.0),
    )


def _limit(section: LimitSection) -> Limit:
    return Limit(section.requests, section.bytes, section.dollars)


def _priorities(file: PolicyFile) -> list[tuple[str, str, PrioritySection]]:
    """Model (empty for the default), priority as the file has it, and its table."""
    sides: Mapping[str, DefaultSection | ModelSection] = {"": file.default, **file.models}
    return [(name, text, priority) for name, side in sides.items() for text, priority in side.priority.items()]


def _described(policy: Policy, name: str) -> dict[str, Any]:
    section = policy.file.models.get(name, ModelSection())
    terms = policy.terms(name)
    sla_s = policy.sla_s(name, -1)
    priorities = sorted({priority for owner, priority in policy._sla_s if owner in ("", name)})
    return {
        "sla_ms": None if sla_s is None else sla_s * 1e3,
        "priority_sla_ms": {str(priority): (policy.sla_s(name, priority) or 0.0) * 1e3 for priority in priorities},
        "data": "edge-only" if terms.edge_only else "cloud-allowed",
        "hedge": terms.may_hedge,
        "coalesce": policy.coalesces(name),
        "cascade": msgspec.to_builtins(section.cascade),
        "canary": msgspec.to_builtins(section.canary),
        "shadow": msgspec.to_builtins(section.shadow),
    }


NO_POLICY = Policy(PolicyFile())
"""Nothing is limited, nothing is kept on the device."""
