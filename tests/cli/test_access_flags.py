"""Flags that say who may talk to a server, and where it listens."""

import pytest

from edgekit.cli._access import access_of
from edgekit.cli._addresses import serving_addresses
from edgekit.errors import StorageError, UsageError
from edgekit.protocol import Access


def test_nothing_asked_for():
    assert access_of("", "", "", "") == Access()


def test_a_token_is_read_from_its_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    assert access_of("c.pem", "k.pem", "ca.pem", str(path)) == Access("c.pem", "k.pem", "ca.pem", "s3cret")


def test_a_bad_token_file(tmp_path):
    path = tmp_path / "token"
    with pytest.raises(StorageError, match=r"--token-file .*No such file"):
        access_of("", "", "", str(path))
    path.write_text("\n")
    with pytest.raises(UsageError, match="empty"):
        access_of("", "", "", str(path))
    path.write_text("two words")
    with pytest.raises(UsageError, match="token"):
        access_of("", "", "", str(path))
    with pytest.raises(UsageError, match="without a certificate"):
        access_of("", "k.pem", "", "")


def test_addresses():
    assert serving_addresses("127.0.0.1:80", "off") == (("127.0.0.1", 80), None)
    assert serving_addresses("off", ":81") == (None, ("127.0.0.1", 81))
    assert serving_addresses("unix:/run/a.sock", "unix:/run/b.sock") == (("unix:/run/a.sock", 0), ("unix:/run/b.sock", 0))
    with pytest.raises(UsageError, match="--http: 'unix:'; expected unix:/path"):
        serving_addresses("unix:", "off")
    with pytest.raises(UsageError, match="--grpc: 'unix'; expected HOST:PORT"):
        serving_addresses("off", "unix")
    with pytest.raises(UsageError, match="both off"):
        serving_addresses("off", "off")
