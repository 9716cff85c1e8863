"""Profiles: every figure has a source, every name resolves, every mistake is named."""

import tomllib
from importlib import resources

import pytest

from edgekit.device_profiles import DeviceProfile, list_profiles, load_profile
from edgekit.errors import UnknownNameError, UsageError

REQUIRED = [
    "jetson-orin",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-thor",
    "raspberry-pi-5",
    "raspberry-pi-4",
    "coral-edgetpu",
    "pixel-9",
    "galaxy-s24",
    "iphone-15",
    "iphone-16",
    "ipad-m4",
    "mac-m3",
    "intel-nuc",
    "intel-meteor-lake",
    "intel-lunar-lake",
    "generic-x86",
    "generic-arm64",
    "rtx-pc",
]
NUMBERS = ("memory_bytes", "memory_bandwidth_bytes_per_s", "cpu_cores", "tops", "tdp_w", "threads", "workspace_bytes")
FILES = sorted(
    (entry for entry in (resources.files("edgekit.device_profiles") / "data").iterdir() if entry.name.endswith(".toml")),
    key=lambda entry: entry.name,
)


def test_there_are_at_least_twenty():
    assert len(list_profiles()) >= 20


@pytest.mark.parametrize("name", REQUIRED)
def test_every_promised_device_loads(name):
    profile = load_profile(name)
    assert profile.engines
    assert profile.memory_bytes > 0


def test_ids_and_aliases_are_unique():
    names = [name for profile in list_profiles() for name in (profile.id, *profile.aliases)]
    assert len(names) == len(set(names))


def test_an_alias_is_the_same_profile():
    assert load_profile("jetson-orin") is load_profile("jetson-agx-orin")


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.id)
def test_every_figure_has_a_source(profile: DeviceProfile):
    needed = [key for key in NUMBERS if getattr(profile, key)]
    needed += ["precisions"] + [key for key in ("accelerators", "cpu_features") if getattr(profile, key)]
    for engine in profile.engines:
        needed += [
            f"engines.{engine.name}.{key}"
            for key in ("opset_max", "deployment_target", "compute_capability")
            if getattr(engine, key) and (engine is profile.engine or key == "opset_max")
        ]
    assert [key for key in needed if not profile.sources.get(key)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_inheriting_profile_gives_sources_for_what_it_overrides(file):
    table = tomllib.loads(file.read_text())
    if "inherits" in table:
        overridden = [key for key in (*NUMBERS, "accelerators") if key in table]
        assert [key for key in overridden if key not in table["sources"]] == []


def test_a_module_without_dla_does_not_inherit_one():
    assert "dla" in load_profile("jetson-agx-orin").accelerators
    assert "dla" not in load_profile("jetson-orin-nano").accelerators


def test_an_unknown_device_gets_the_nearest_names():
    with pytest.raises(UnknownNameError, match="jetson-orin") as caught:
        load_profile("jetsn-orin")
    assert "jetson-orin" in caught.value.nearest
    assert caught.value.exit_code == 2


MINIMAL = """
title = "My board"
family = "arm64"
arch = "aarch64"
os = "linux"
memory_bytes = 1024
[precisions]
fp32 = "works"
[[engines]]
name = "tflite"
[sources]
memory_bytes = "measured"
"""


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ("memory_bytes = 1024", "memory_byte = 1024", UnknownNameError, "memory_bytes"),
        ("memory_bytes = 1024", 'memory_bytes = "1 KiB"', UsageError, "memory_bytes"),
        ("memory_bytes = 1024", "", UsageError, "no memory_bytes"),
        ('name = "tflite"', 'name = "tflit"', UnknownNameError, "tflite"),
        ('name = "tflite"', 'name = "tflite"\nopset = 3', UnknownNameError, "opset_max"),
        ('fp32 = "works"', 'fp23 = "works"', UnknownNameError, "fp32"),
        ('fp32 = "works"', 'fp32 = "quick"', UnknownNameError, "works"),
        ('title = "My board"', 'title = "My board"\ninherits = "raspberry-pi-55"', UnknownNameError, "raspberry-pi-5"),
        ('title = "My board"', 'title = My board"', UsageError, "not TOML"),
    ],
)
def test_a_profile_of_the_users_own_is_checked(tmp_path, old, new, error, says):
    path = tmp_path / "board.toml"
    path.write_text(MINIMAL)
    assert load_profile(str(path)).id == "board"
    path.write_text(MINIMAL.replace(old, new, 1))
    with pytest.raises(error, match=says) as caught:
        load_profile(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_profile_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load_profile(str(tmp_path / "none.toml"))
