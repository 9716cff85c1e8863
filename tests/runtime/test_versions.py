"""Labels, rollouts and removals as pure changes of the repository's state."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import BundleError, NotFoundError, UsageError
from edgekit.runtime._quotas import Resident, choose_evictions
from edgekit.runtime._rollout import start_rollout
from edgekit.runtime._versions import (
    InstalledVersion,
    ModelState,
    RepositoryState,
    choose_removals,
    decode_state,
    default_version,
    encode_state,
    end_rollout,
    set_label,
    with_installed,
    with_model,
    with_rollout,
    without_version,
)


def installed(version, size=10, order=1, content=""):
    return InstalledVersion(f"m-{version}@0", f"digest{version}{content}", size, order)


def state_with(*versions, quota=0):
    state = RepositoryState(quota_bytes=quota)
    for order, version in enumerate(versions, 1):
        state = with_installed(state, "m", version, installed(version, order=order))
    return state


def labelled(state, **labels):
    model = state.models["m"]
    for label, version in labels.items():
        model = set_label(model, "m", label, version, model.versions)
    return with_model(state, "m", model)


def test_the_default_is_the_stable_version_or_the_one_before_it_or_the_highest():
    versions = ["9", "10", "2"]
    assert default_version(ModelState(), versions) == "10"
    model = set_label(ModelState(), "m", "stable", "9", versions)
    assert default_version(model, versions) == "9"
    model = set_label(model, "m", "stable", "2", versions)
    assert (default_version(model, versions), default_version(model, ["9", "10"]), default_version(model, ["10"])) == ("2", "9", "10")
    assert default_version(model, []) == ""


def test_states_survive_the_file():
    state = labelled(state_with("1", "2", quota=100), stable="1")
    model = with_rollout(state.models["m"], "m", start_rollout("canary", "1", "2", 5.0), ["1", "2"])
    state = with_model(state, "m", model)
    assert decode_state(encode_state(state), "models.json") == state
    assert encode_state(decode_state(encode_state(state), "x")) == encode_state(state)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"models": 3}', b'{"format": "edgekit-models/9"}', b"\xff", b'{"colour": "red"}'])
def test_what_is_no_state(raw):
    with pytest.raises(BundleError, match=r"models.json: .*edgekit-models/1"):
        decode_state(raw, "models.json")


def test_installing_moves_labels_with_it():
    state = with_installed(labelled(state_with("1"), stable="1"), "m", "2", installed("2"), ["stable", "tuned"])
    assert state.models["m"].labels == {"stable": "2", "tuned": "2"}
    assert state.models["m"].previous == "1"


def test_a_version_in_use_keeps_its_content():
    state = labelled(state_with("1", "2"), stable="1")
    assert with_installed(state, "m", "1", installed("1"))  # the same again is no change
    with pytest.raises(UsageError, match="model m version 1: is installed with another content, and carries the label stable"):
        with_installed(state, "m", "1", installed("1", content="other"))
    assert with_installed(state, "m", "2", installed("2", content="other")).models["m"].versions["2"].digest == "digest2other"


def test_removal():
    state = labelled(state_with("1", "2"), stable="1")
    with pytest.raises(UsageError, match="carries the label stable"):
        without_version(state, "m", "1")
    with pytest.raises(NotFoundError, match="model 'm' version '3': not installed; expected one of 1, 2"):
        without_version(state, "m", "3")
    assert list(without_version(state, "m", "2").models["m"].versions) == ["1"]
    assert without_version(state_with("1"), "m", "1") == RepositoryState()


@pytest.mark.parametrize("label", ["", "9lives", "a b", "-x", "a/b", "x" * 65])
def test_no_label(label):
    with pytest.raises(UsageError, match="not a label"):
        set_label(ModelState(), "m", label, "1", ["1"])


def test_labels_and_versions_cannot_be_confused():
    with pytest.raises(UsageError, match="label 'beta': is a version of model m"):
        set_label(ModelState(), "m", "beta", "1", ["1", "beta"])
    with pytest.raises(NotFoundError, match="no version '7'; expected one of 1"):
        set_label(ModelState(), "m", "stable", "7", ["1"])


def test_a_rollout_pins_what_is_stable():
    versions = ["1", "2"]
    model = with_rollout(ModelState(), "m", start_rollout("canary", "1", "2", 0.0), versions)
    assert model.labels == {"stable": "1", "canary": "2"}
    assert default_version(model, [*versions, "3"]) == "1"  # a higher one that comes meanwhile answers nobody
    with pytest.raises(UsageError, match="a canary of version 2 is under way"):
        with_rollout(model, "m", start_rollout("split", "1", "2", 0.0), versions)
    for label in ("stable", "canary"):
        with pytest.raises(UsageError, match="a rollout of model m holds it"):
            set_label(model, "m", label, "2", versions)
    assert end_rollout(model, "rolled_back", "slow", 9.0).labels == {"stable": "1"}
    promoted = end_rollout(model, "promoted", "fine", 9.0)
    assert (promoted.labels, promoted.previous, promoted.rollout) == ({"stable": "2"}, "1", None)
    assert promoted.last.reason == "fine"


def test_room_is_made_of_the_oldest_that_nothing_needs():
    state = labelled(state_with("1", "2", "3", "4", quota=45), stable="2")
    assert choose_removals(state, 5) == []
    assert choose_removals(state, 6) == [("m", "1")]
    assert choose_removals(state, 16) == [("m", "1"), ("m", "3")]
    assert choose_removals(state, 16, [("m", "1")]) == [("m", "3"), ("m", "4")]
    with pytest.raises(UsageError, match="disk quota: the bundle takes 36 bytes, 35 are or can be made free"):
        choose_removals(state, 36)
    assert choose_removals(state_with("1"), 10**9) == []  # no quota


@given(
    residents=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 99), st.booleans()), max_size=8, unique_by=lambda one: one[1]),
    needed=st.integers(0, 100),
    quota=st.integers(1, 200),
)
def test_evictions(residents, needed, quota):
    """Never one that is held, never more than needed, oldest first; none says that even all would not do."""
    loaded = [Resident("m", str(used), size, used, held) for size, used, held in residents]
    evictions = choose_evictions(loaded, needed, quota)
    total = sum(one.bytes for one in loaded)
    if evictions is None:
        assert needed + sum(one.bytes for one in loaded if one.held) > quota
        return
    gone = sum(one.bytes for one in evictions)
    assert total - gone + needed <= quota
    assert not any(one.held for one in evictions)
    assert evictions == sorted((one for one in loaded if not one.held), key=lambda one: one.used)[: len(evictions)]
    if evictions:
        assert total - gone + evictions[-1].bytes + needed > quota
    assert choose_evictions(loaded, 10**9, 0) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["install", "remove", "label", "rollout", "end"]), st.integers(1, 4), st.sampled_from("ab")), max_size=25
    )
)
def test_no_sequence_of_changes_leaves_a_dangling_label(steps):
    state = RepositoryState()
    for order, (what, number, label) in enumerate(steps):
        version = str(number)
        model = state.models.get("m", ModelState())
        try:
            if what == "install":
                state = with_installed(state, "m", version, installed(version, order=order))
            elif what == "remove":
                state = without_version(state, "m", version)
            elif what == "label":
                state = with_model(state, "m", set_label(model, "m", label, version, model.versions))
            elif what == "rollout" and (base := default_version(model, model.versions)):
                state = with_model(state, "m", with_rollout(model, "m", start_rollout("canary", base, version, 0.0), model.versions))
            elif what == "end" and model.rollout:
                state = with_model(state, "m", end_rollout(model, "promoted" if number % 2 else "rolled_back", "", 0.0))
        except UsageError:
            pass
        except NotFoundError:
            pass
        for known in state.models.values():
            assert known.versions
            assert set(known.labels.values()) <= set(known.versions)
            if known.rollout:
                assert {known.rollout.baseline, known.rollout.candidate} <= set(known.versions)
            assert known.previous in {"", *known.versions}
        assert decode_state(msgspec.json.encode(state), "x") == state
