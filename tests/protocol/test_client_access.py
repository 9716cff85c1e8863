"""Our clients with TLS, client certificates, tokens and unix sockets, against our own servers."""

import contextlib

import numpy as np
import pytest

from edgekit.cli._access import credentials_of, servers
from edgekit.errors import StorageError, UnavailableError, UsageError
from edgekit.protocol import Access, Credentials, InferRequest, Tensor, connect, is_server_url, serve
from edgekit.protocol._target import Target, parse_target
from edgekit.router import serve_router
from tests.protocol.test_http_security import NO_OPENSSL, certificates

__all__ = ["certificates"]
X = np.arange(8, dtype=np.float32).reshape(2, 4)
ANY = ("127.0.0.1", 0)
FORMS = {
    "http://h": Target("http://h:8000", False, host="h", port=8000),
    "https://h": Target("https://h:443", False, True, "h", 443),
    "https://h:1/a/b/": Target("https://h:1/a/b", False, True, "h", 1, prefix="/a/b"),
    "grpc://[::1]": Target("grpc://[::1]:8001", True, host="::1", port=8001),
    "grpcs://h:7": Target("grpcs://h:7", True, True, "h", 7),
    "unix:/run/x": Target("unix:/run/x", False, path="/run/x"),
    "unix:///run/x": Target("unix:/run/x", False, path="/run/x"),
    "http+unix:/run/x": Target("http+unix:/run/x", False, path="/run/x"),
    "grpc+unix:x": Target("grpc+unix:x", True, path="x"),
}
BAD = {
    "h:8000": "not a server's address",
    "ftp://h": "not a server's address",
    "http://": "not a server's address",
    "http://h:x": "a bad port",
    "grpcs://h:99999": "a bad port",
    "unix:": "no path",
    "grpc+unix:": "no path",
    "https://me:secret@h": "a user name or password",
}


def ask(url, credentials=None):
    """Everything that a client can do, once."""
    with contextlib.closing(connect(url, credentials)) as client:
        assert client.ready()
        assert client.model_ready("echo")
        assert client.model_metadata("echo").name == "echo"
        assert client.statistics("echo")
        for _ in range(2):
            answer = client.infer(InferRequest("echo", [Tensor("x", X)]), 10.0)
            np.testing.assert_array_equal(answer.outputs[0].data, X)
        assert client.start(InferRequest("echo", [Tensor("x", X)], id="7"), 10.0).result(10.0).id == "7"


@pytest.mark.parametrize("url", FORMS)
def test_the_forms_of_a_url(url):
    assert parse_target(url) == FORMS[url]
    assert is_server_url(url)


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_url(url):
    with pytest.raises(UsageError, match=BAD[url]) as caught:
        parse_target(url)
    assert "secret" not in str(caught.value)


def test_credentials_that_do_not_go_together(tmp_path):
    with pytest.raises(UsageError, match="without its certificate"):
        Credentials(key="k.pem")
    with pytest.raises(UsageError, match="token"):
        Credentials(token="two words")
    with pytest.raises(UsageError, match="no TLS"):
        connect("http://h", Credentials(ca="ca.pem"))
    with pytest.raises(UsageError, match="no TLS"):
        connect("grpc+unix:/x", Credentials(certificate="c.pem"))
    (tmp_path / "empty.pem").write_text("")
    for scheme in ("https", "grpcs"):
        with pytest.raises(StorageError, match=r"CA /nowhere.pem: No such file"):
            connect(f"{scheme}://h", Credentials(ca="/nowhere.pem"))
        with pytest.raises(StorageError, match="PEM certificates"):
            connect(f"{scheme}://h", Credentials(ca=str(tmp_path / "empty.pem")))
        with pytest.raises(StorageError, match=r"certificate /nowhere.pem"):
            connect(f"{scheme}://h", Credentials(certificate="/nowhere.pem"))


@pytest.mark.slow
@NO_OPENSSL
def test_tls_client_certificate_and_token(certificates, submitting_core):
    ca, certificate, key, client_certificate, client_key = certificates
    with serve(submitting_core, ANY, ANY, access=Access(certificate, key, token="secret")) as server:
        for url in (f"https://localhost:{server.http_port}", f"grpcs://localhost:{server.grpc_port}"):
            ask(url, Credentials(ca=ca, token="secret"))
            with contextlib.closing(connect(url, Credentials(ca=ca, token="wrong"))) as stranger:
                assert stranger.ready()  # health is open
                with pytest.raises(UnavailableError, match="token"):
                    stranger.infer(InferRequest("echo", [Tensor("x", X)]), 5.0)
            with contextlib.closing(connect(url)) as trusting_others, pytest.raises(UnavailableError, match=r"(?i)certificate"):
                trusting_others.infer(InferRequest("echo", [Tensor("x", X)]), 5.0)
    with serve(submitting_core, ANY, ANY, access=Access(certificate, key, client_ca=ca)) as server:
        for url in (f"https://127.0.0.1:{server.http_port}", f"grpcs://127.0.0.1:{server.grpc_port}"):
            ask(url, Credentials(ca, client_certificate, client_key))
            with contextlib.closing(connect(url, Credentials(ca))) as stranger:
                assert not stranger.ready(2.0)
                with pytest.raises(UnavailableError):
                    stranger.infer(InferRequest("echo", [Tensor("x", X)]), 2.0)


@pytest.mark.slow
def test_unix_sockets_with_a_token(tmp_path, submitting_core):
    http, grpc = tmp_path / "http.sock", tmp_path / "grpc.sock"
    with serve(submitting_core, (f"unix:{http}", 0), (f"unix:{grpc}", 0), access=Access(token="secret")):
        for url in (f"unix:{http}", f"http+unix:{http}", f"grpc+unix:{grpc}"):
            ask(url, Credentials(token="secret"))
    with contextlib.closing(connect(f"unix:{http}")) as client, pytest.raises(UnavailableError, match="cannot be reached"):
        client.infer(InferRequest("echo", [Tensor("x", X)]), 2.0)


@pytest.mark.slow
@NO_OPENSSL
def test_the_router_shows_its_credentials(certificates, submitting_core, tmp_path, monkeypatch):
    ca, certificate, key, *_ = certificates
    (tmp_path / "token").write_text("edge-secret\n")
    monkeypatch.setenv("EDGEKIT_CLOUD_TOKEN", "cloud-secret")
    to_edge = credentials_of("edge", "", "", "", str(tmp_path / "token"))
    to_cloud = credentials_of("cloud", ca, "", "", "")
    assert (to_edge.token, to_cloud.token) == ("edge-secret", "cloud-secret")
    with (
        serve(submitting_core, (f"unix:{tmp_path}/edge.sock", 0), None, access=Access(token="edge-secret")),
        serve(submitting_core, None, ANY, access=Access(certificate, key, token="cloud-secret")) as cloud,
        servers([f"unix:{tmp_path}/edge.sock"], "edge", to_edge) as (edge,),
        servers([f"grpcs://localhost:{cloud.grpc_port}"], "cloud", to_cloud) as clouds,
        serve_router(edge, clouds, 5000.0, http=ANY, grpc=None, model="echo") as router,
        contextlib.closing(connect(f"http://127.0.0.1:{router.http_port}")) as client,
    ):
        assert clouds[0].ready(10.0)
        np.testing.assert_array_equal(client.infer(InferRequest("echo", [Tensor("x", X)]), 10.0).outputs[0].data, X)
        np.testing.assert_array_equal(clouds[0].infer(InferRequest("echo", [Tensor("x", X)]), 10.0).outputs[0].data, X)


def test_the_routers_options(tmp_path, monkeypatch):
    with servers(["a.edgekit", "http://h"], "edge", Credentials()) as targets:
        assert targets == ["a.edgekit", "http://h"]
    with pytest.raises(UsageError, match="no server to show them to"), servers(["a.edgekit"], "edge", Credentials(token="t")):
        pass
    (tmp_path / "token").write_text("\n")
    with pytest.raises(UsageError, match=r"--cloud-token-file .*: empty"):
        credentials_of("cloud", "", "", "", str(tmp_path / "token"))
    with pytest.raises(StorageError, match="--edge-token-file /nowhere"):
        credentials_of("edge", "", "", "", "/nowhere")
    monkeypatch.setenv("EDGEKIT_EDGE_TOKEN", "t")
    with pytest.raises(UsageError, match="EDGEKIT_EDGE_TOKEN is set"):
        credentials_of("edge", "", "", "", str(tmp_path / "token"))
