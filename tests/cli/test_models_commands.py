"""``edgekit models``: a repository from the command line."""

import pytest

from edgekit.bundle import Bundle
from edgekit.cli._models import byte_limit
from edgekit.errors import UsageError
from tests.runtime.serving_bundles import write_scale


@pytest.fixture
def bundles(tmp_path):
    for version in ("1", "2"):
        write_scale(tmp_path / f"scale {version}", version=version, scale=float(version))
    return [tmp_path / "scale 1", tmp_path / "scale 2"]


def test_a_repository_from_install_to_remove(edgekit, bundles, tmp_path):
    there = ("-r", tmp_path / "repository")
    done = edgekit("models", "install", *bundles, *there, "--json")
    assert done.status == 0, done.err
    assert [(row["name"], row["version"]) for row in done.json] == [("scale", "1"), ("scale", "2")]
    assert edgekit("models", "label", "scale", "stable", "1", *there, "--json").json["labels"] == {"stable": "1"}
    rows = edgekit("models", "list", *there, "--json").json["models"]
    assert [(row["version"], row["labels"], row["default"]) for row in rows] == [("1", ["stable"], True), ("2", [], False)]
    assert rows[0]["digest"] == Bundle.open(bundles[0]).digest
    assert edgekit("models", "rollout", "scale", "canary", "--version", "2", "--slo-ms", "5", *there).status == 0
    assert "canary: candidate at 5%" in edgekit("models", "list", *there).out
    assert edgekit("models", "rollout", "scale", "promote", *there, "--json").json["labels"] == {"stable": "2"}
    assert "scale: version 2 promoted: by hand" in edgekit("models", "list", *there).out
    assert edgekit("models", "rollout", "scale", "rollback", *there, "--json").json["labels"] == {"stable": "1"}
    assert edgekit("models", "remove", "scale", "2", *there).status == 0
    assert edgekit("models", "label", "scale", "stable", "-", *there, "--json").json["labels"] == {}
    assert [row["version"] for row in edgekit("models", "list", *there, "--json").json["models"]] == ["1"]


def test_the_quota(edgekit, bundles, tmp_path):
    there = ("-r", tmp_path / "repository")
    edgekit("models", "install", bundles[0], *there)
    assert edgekit("models", "quota", "--disk", "6kB", *there, "--json").json == {"quota_bytes": 6000}
    refused = edgekit("models", "install", bundles[1], *there)
    assert refused.status == 2
    assert "disk quota" in refused.error


WRONG = {
    "no bundle": (["models", "install", "nothing", "-r", "{r}"], 1, "no such file or directory"),
    "no such model": (
        ["models", "label", "x", "stable", "1", "-r", "{r}"],
        2,
        "model 'x': not installed; expected one of none; install it first",
    ),
    "no such version": (["models", "remove", "x", "1", "-r", "{r}"], 2, "not installed"),
    "no repository": (["models", "list"], 2, "repository"),
    "another folder": (["models", "list", "-r", "{r}y"], 2, "repositoryy: no such folder; expected a repository"),
    "no size": (["models", "quota", "--disk", "much", "-r", "{r}"], 2, "--disk: 'much'"),
    "no models to serve": (["serve"], 2, "neither paths nor a repository folder; expected one of both"),
    "two places": (["serve", "x", "--repository", "{r}"], 2, "both paths and a repository folder"),
    "no cache size": (["serve", "--repository", "{r}", "--result-cache", "lots"], 2, "--result-cache: 'lots'"),
    "no time to live": (["serve", "--repository", "{r}", "--result-cache", "1MB", "--result-cache-ttl", "0"], 2, "a time to live of 0 s"),
    "redis alone": (["serve", "--repository", "{r}", "--result-cache-redis", "redis://x"], 2, "give --result-cache SIZE"),
    "no redis": (
        ["serve", "--repository", "{r}", "--result-cache", "1MB", "--result-cache-redis", "http://x", "--http", ":0", "--grpc", "off"],
        2,
        "--result-cache-redis: 'http://x'",
    ),
    "no memory": (["serve", "--repository", "{r}", "--memory-quota", "-1"], 2, "--memory-quota: '-1'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(case, edgekit, tmp_path):
    arguments, status, line = WRONG[case]
    (tmp_path / "repository").mkdir()
    done = edgekit(*(argument.format(r=tmp_path / "repository") for argument in arguments))
    assert done.status == status
    assert line in done.error
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_candidate_must_be_named(edgekit, bundles, tmp_path):
    there = ("-r", tmp_path / "repository")
    edgekit("models", "install", *bundles, *there)
    assert "rollout 'canary': no version given" in edgekit("models", "rollout", "scale", "canary", *there).error
    assert edgekit("models", "rollout", "scale", "split", "--version", "7", *there).status == 2


def test_sizes():
    assert [byte_limit(text, "--x") for text in ("0", "12", "1.5kB", "2GiB", "3M")] == [0, 12, 1500, 2 << 30, 3_000_000]
    for text in ("", "x", "1 parsec", "-3"):
        with pytest.raises(UsageError, match="--x"):
            byte_limit(text, "--x")
