"""TLS files and tokens: what goes together, what is allowed."""

import pytest

from edgekit.errors import StorageError, UsageError
from edgekit.protocol import Access


def test_the_default_asks_nothing():
    assert Access().allows(None)
    assert Access().allows("Bearer anything")
    assert Access().tls_context(["http/1.1"]) is None
    assert not Access().tls


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("Bearer s3cret", True),
        ("bearer s3cret", True),
        ("Bearer  s3cret ", True),
        ("Bearer s3cre", False),
        ("Bearer s3crets", False),
        ("Bearer s3cr\xe9t", False),
        ("Basic s3cret", False),
        ("s3cret", False),
        ("Bearer", False),
        ("", False),
        (None, False),
    ],
)
def test_tokens(header, allowed):
    assert Access(token="s3cret").allows(header) is allowed


@pytest.mark.parametrize("parts", [{"key": "k"}, {"client_ca": "c"}, {"token": "a b"}, {"token": "ä"}, {"token": "a\n"}])
def test_parts_that_do_not_go_together(parts):
    with pytest.raises(UsageError):
        Access(**parts)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        Access(certificate=str(tmp_path / "no.pem")).tls_context(["h2"])
    (tmp_path / "bad.pem").write_text("not a certificate")
    with pytest.raises(StorageError, match="expected a PEM certificate"):
        Access(certificate=str(tmp_path / "bad.pem")).tls_context(["h2"])
