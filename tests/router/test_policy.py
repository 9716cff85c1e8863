"""A policy file: what it says for each model and priority, and one line for everything that can be wrong with it."""

from pathlib import Path

import pytest

from edgekit.errors import StorageError, UnknownNameError, UsageError
from edgekit.router._events import Terms
from edgekit.router._policy import (
    NO_POLICY,
    BudgetSection,
    CanarySection,
    CascadeSection,
    DefaultSection,
    HedgeSection,
    LimitSection,
    ModelSection,
    Policy,
    PolicyFile,
    RetrySection,
    ShadowSection,
)
from edgekit.router._policy_file import parse_policy, read_policy

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/policy.toml"


@pytest.fixture(scope="module")
def example():
    return read_policy(EXAMPLE)


def test_no_policy_limits_nothing():
    assert NO_POLICY.terms("m") == Terms()
    assert NO_POLICY.sla_s("m", 0) is None
    assert not NO_POLICY.limits.any
    assert parse_policy("").described() == NO_POLICY.described()


def test_the_example_says_what_its_comments_say(example):
    assert example.terms("faces").edge_only
    assert not example.terms("other").edge_only
    defects = example.terms("defects")
    assert (defects.escalate_below, defects.escalate_every_s, defects.audit_share) == (0.2, 2.0, 0.001)
    assert defects.dollars_per_request == 0.00002
    assert defects.dollars_per_byte * 1e9 == pytest.approx(0.09)
    assert example.terms("plates").audit_share == 0.01
    assert example.shadow("plates").version == "9"
    assert example.shadow("defects") is None
    assert example.limits.hour.requests == 20_000
    assert example.limits.day.dollars == 5.0
    assert example.confidence_rule("defects").output == "probabilities"
    assert example.confidence_rule("faces") is None


@pytest.mark.parametrize(
    ("model", "priority", "sla_ms"),
    [("faces", 0, 40), ("faces", 3, 2000), ("other", 0, 100), ("other", 3, 2000), ("other", 2, 100), ("defects", 7, 60)],
)
def test_the_sla_of_a_model_and_a_priority(example, model, priority, sla_ms):
    assert example.sla_s(model, priority) == pytest.approx(sla_ms / 1e3)


def test_a_priority_of_a_model_holds_before_that_of_all():
    policy = parse_policy("default.priority.1.sla_ms = 5\nmodels.m.priority.1.sla_ms = 7\nmodels.m.sla_ms = 9")
    assert [policy.sla_s("m", 1), policy.sla_s("n", 1), policy.sla_s("m", 0), policy.sla_s("n", 0)] == [0.007, 0.005, 0.009, None]


def test_a_model_may_leave_the_device_where_the_default_may_not():
    policy = parse_policy('default.data = "edge-only"\ndefault.hedge = false\nmodels.m.data = "cloud-allowed"\nmodels.m.hedge = true')
    assert [(policy.terms(name).edge_only, policy.terms(name).may_hedge) for name in ("m", "other")] == [(False, True), (True, False)]


def test_coalescing_is_asked_for():
    policy = parse_policy("default.coalesce = true\nmodels.m.coalesce = false")
    assert (policy.coalesces("m"), policy.coalesces("n"), NO_POLICY.coalesces("m")) == (False, True, False)


def test_a_canary_gets_its_share_and_one_key_one_version(example):
    keys = [f"request-{index}" for index in range(4000)]
    versions = {key: example.canary_version("defects", "cloud", key) for key in keys}
    assert set(versions.values()) == {"", "4"}
    # 4,000 draws at 0.05: 200 expected, standard deviation 13.8; four of them either way.
    assert 145 <= sum(version == "4" for version in versions.values()) <= 255
    assert all(example.canary_version("defects", "cloud", key) == version for key, version in versions.items())
    assert {example.canary_version("defects", "edge", key) for key in keys} == {""}
    assert {example.canary_version("faces", "cloud", key) for key in keys} == {""}
    assert (example.has_canary("defects"), example.has_canary("faces")) == (True, False)


def test_both_tiers_give_one_key_the_same_version():
    policy = parse_policy('models.m.canary = { version = "2", share = 0.5 }')
    for key in map(str, range(100)):
        assert policy.canary_version("m", "edge", key) == policy.canary_version("m", "cloud", key)


def test_what_holds_is_told_with_every_default(example):
    told = example.described(("unknown",))
    assert sorted(told["models"]) == ["defects", "faces", "plates", "unknown"]
    assert told["models"]["faces"]["priority_sla_ms"] == {"3": 2000.0}
    assert told["models"]["unknown"] == told["default"]
    assert told["models"]["faces"]["data"] == "edge-only"
    assert told["budget"]["per_day"]["dollars"] == 5.0


BAD = {
    "x = 1": "line 1: key of the file: unknown name 'x'",
    "[default]\nsla = 4": "line 2: key of default: unknown name 'sla'; expected one of sla_ms",
    "[models.m]\nsla_ms = 5\n[models.m.cascade]\nbelow = 0.1\noutptu = 'p'": "line 5: key of models.m.cascade: unknown name 'outptu'; expected one of output",
    "format = 2": "line 1: format: 2; expected 1",
    "default = 3": "line 1: default: 3; expected a table",
    "models = [1]": "line 1: models: [1]; expected a table",
    "[models]\nm = 1": "line 2: models.m: 1; expected a table",
    "models.''.sla_ms = 3": "line 1: models.: ''; expected a name",
    "[models.m]\nsla_ms = '5 ms'": "line 2: models.m.sla_ms: '5 ms'; expected milliseconds, a number above 0",
    "[models.m]\nsla_ms = 0": "line 2: models.m.sla_ms: 0; expected milliseconds",
    "[models.m]\nsla_ms = nan": "line 2: models.m.sla_ms: nan; expected milliseconds",
    "[models.m]\nsla_ms = inf": "line 2: models.m.sla_ms: inf; expected milliseconds",
    "[models.m]\nsla_ms = true": "line 2: models.m.sla_ms: True; expected milliseconds",
    "[models.m]\ndata = 'edge'": "line 2: models.m.data: 'edge'; expected \"edge-only\" or",
    "[models.m]\npriority.high.sla_ms = 3": "line 2: models.m.priority.high: 'high'; expected a priority",
    "[default.priority.0]\nsla_ms = 3": "line 1: default.priority.0: '0'; expected a priority",
    "[default.priority.01]\nsla_ms = 3": "line 1: default.priority.01: '01'; expected a priority",
    "[default.priority.1]": "line 1: default.priority.1: no sla_ms; expected milliseconds",
    "[models.m.cascade]\nkind = 'score'": "line 1: models.m.cascade: no below; expected a number",
    "[models.m.cascade]\nbelow = 2": "line 2: models.m.cascade.below: 2.0; expected a margin of probabilities, from 0 to 1",
    "[models.m.cascade]\nbelow = 0.5\nkind = 'entropy'": "line 3: models.m.cascade.kind: 'entropy'; expected \"probabilities\"",
    "[models.m.cascade]\nbelow = 0.5\naudit_share = 1.5": "line 3: models.m.cascade.audit_share: 1.5; expected a share from 0 to 1",
    "[models.m.canary]\nversion = 3\nshare = 0.5": "line 2: models.m.canary.version: 3; expected text",
    "[models.m.canary]\nshare = 0.5": "models.m.canary: no version; expected text",
    "[models.m]\ndata = 'edge-only'\n[models.m.cascade]\nbelow = 0.5": "line 3: models.m.cascade: asks the cloud, and the model is edge-only",
    "default.data = 'edge-only'\nmodels.m.shadow.share = 0.5": "line 2: models.m.shadow: asks the cloud",
    "models.m.data = 'edge-only'\nmodels.m.canary = {version = '1', share = 0.5}": "models.m.canary: asks the cloud",
    "[budget.per_hour]\nrequests = -1": "line 2: budget.per_hour.requests: -1; expected a whole number, 0 or more",
    "[budget]\nper_hour = { requests = 1.5 }": "line 2: budget.per_hour.requests: 1.5; expected a whole number",
    '[budget.per_day]\ndollars = """\nfive"""': "line 3: budget.per_day.dollars: 'five'; expected dollars",
    "[budget]\ndollars_per_gb = inf": "line 2: budget.dollars_per_gb: inf; expected dollars",
    "[retry]\nshare = -0.1": "line 2: retry.share: -0.1; expected a share from 0 to 1",
    "[hedge]\nshare = 2": "line 2: hedge.share: 2; expected a share from 0 to 1",
    "[a]\nb = \n": "not TOML: Invalid value (at line 2",
}


@pytest.mark.parametrize("text", BAD)
def test_one_line_for_everything_that_is_wrong(text):
    with pytest.raises(UsageError) as caught:
        parse_policy(text, "p.toml")
    line = str(caught.value)
    assert line.startswith("p.toml")
    assert BAD[text] in line
    assert "\n" not in line


def test_a_canary_of_the_device_may_stay_there():
    policy = parse_policy("models.m.data = 'edge-only'\nmodels.m.canary = {version = '1', share = 1, tier = 'edge'}")
    assert policy.canary_version("m", "edge", "k") == "1"


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        read_policy(tmp_path / "none.toml")
    with pytest.raises(StorageError, match="directory"):
        read_policy(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(UsageError, match="byte 5 is not UTF-8"):
        read_policy(tmp_path / "binary.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UsageError, match="more than"):
        read_policy(tmp_path / "huge.toml")


def test_an_unknown_key_offers_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        parse_policy("[default]\nsla_msec = 3")
    assert caught.value.nearest[0] == "sla_ms"


def test_a_policy_never_changes(example):
    assert isinstance(example, Policy)
    with pytest.raises(AttributeError):
        example.file.format = 2


def test_the_documentation_names_every_key():
    page = (EXAMPLE.parents[1] / "docs/policy.md").read_text("utf-8")
    sections = [
        PolicyFile,
        DefaultSection,
        ModelSection,
        CascadeSection,
        CanarySection,
        ShadowSection,
        BudgetSection,
        LimitSection,
        RetrySection,
        HedgeSection,
    ]
    tables = {"default", "models", "budget", "retry", "per_hour", "per_day", "priority", "cascade", "canary", "shadow", "hedge"}
    for section in sections:
        for name in section.__struct_fields__:
            assert (name in page) if name in tables else (f"`{name}`" in page), name
