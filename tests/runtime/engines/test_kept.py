"""What is kept of a load, decided and done with a stand-in for an engine."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edgekit.runtime.engines._kept import cpu_features, entry_key, load_kept, worth_keeping


def made(path: Path | None) -> str:
    if path is not None:
        path.write_bytes(b"kept")
    return "made"


def taken(path: Path) -> str:
    return path.read_bytes().decode()


def test_made_once_then_taken(tmp_path: Path) -> None:
    target = tmp_path / "engine" / "key"
    assert load_kept(target, "file", made, taken, lambda *_: True) == ("made", "stored")
    assert load_kept(target, "file", made, taken) == ("kept", "hit")


def test_what_is_not_worth_it_is_noted_and_not_tried_again(tmp_path: Path) -> None:
    asked = []

    def never(load_s: float, check_s: float) -> bool:
        asked.append(load_s >= 0 and check_s >= 0)
        return False

    for _ in range(2):
        assert load_kept(tmp_path / "key", "file", made, taken, never) == ("made", "off")
    assert asked == [True]
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["entry.json"]


def test_worth_keeping() -> None:
    assert worth_keeping(load_s=0.017, check_s=0.0004)
    assert not worth_keeping(load_s=0.150, check_s=0.040)


@pytest.mark.parametrize("entry", [b"", b"{}", b"[1]", b"\xff"])
def test_an_entry_that_cannot_be_read_is_made_again(entry: bytes, tmp_path: Path) -> None:
    load_kept(tmp_path / "key", "file", made, taken, lambda *_: True)
    (tmp_path / "key" / "entry.json").write_bytes(entry)
    assert load_kept(tmp_path / "key", "file", made, taken, lambda *_: True) == ("made", "stored")
    assert load_kept(tmp_path / "key", "file", made, taken) == ("kept", "hit")


def test_what_the_engine_refuses_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_kept(tmp_path / "key", "file", made, taken, lambda *_: True)

    def refuse(path: Path) -> str:
        raise RuntimeError("other version")

    with caplog.at_level(logging.WARNING):
        assert load_kept(tmp_path / "key", "file", made, refuse, lambda *_: True) == ("made", "stored")
    assert "other version" in caplog.text


def test_an_artifact_that_does_not_load_says_so_itself(tmp_path: Path) -> None:
    def broken(path: Path | None) -> str:
        raise ValueError("no model")

    with pytest.raises(ValueError, match="no model"):
        load_kept(tmp_path / "key", "file", broken, taken)
    assert list(tmp_path.iterdir()) == []


def test_the_key_holds_all_that_the_content_depends_on(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"1")
    keys = {entry_key(model, content, version, features) for content in ("a", "b") for version in ("1", "2") for features in ("x", "y")}
    assert len(keys) == 8
    first = entry_key(model, "", "1", "x")
    model.write_bytes(b"2")
    assert entry_key(model, "", "1", "x") != first
    assert cpu_features() == cpu_features() != ""
