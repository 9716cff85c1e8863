"""TLS, bearer token and unix sockets over the real server."""

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import time

import numpy as np
import pytest
import tritonclient.http

from edgekit.errors import BindError, StorageError
from edgekit.protocol import Access, InferRequest, Limits, Tensor, serve
from edgekit.protocol._http_codec import decode_response, encode_request
from edgekit.protocol._http_server import HttpTransport

pytestmark = pytest.mark.slow
X = np.arange(4, dtype=np.float32).reshape(1, 4)
JSON_BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}]}).encode()
INFER = "/v2/models/echo/infer"
NO_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """``(CA, server certificate, server key, client certificate, client key)``, all made here."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test CA")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    return [str(folder / name) for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")]


def ask(connection, path="/v2/models/echo", method="GET", body=None, headers=None):
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, response.headers, response.read()


@NO_OPENSSL
def test_tls(certificates, submitting_core):
    ca, certificate, key, *_ = certificates
    with serve(submitting_core, ("127.0.0.1", 0), None, access=Access(certificate, key)) as server:
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["http/1.1"])
        connection = http.client.HTTPSConnection("localhost", server.http_port, timeout=10, context=context)
        for _ in range(3):
            assert ask(connection, INFER, "POST", JSON_BODY)[0] == 200
        assert connection.sock.selected_alpn_protocol() == "http/1.1"
        assert connection.sock.version() in {"TLSv1.2", "TLSv1.3"}
        connection.close()
        with socket.create_connection(("127.0.0.1", server.http_port), 10) as plain:
            plain.sendall(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP/1.1 200")
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(http.client.HTTPSConnection("localhost", server.http_port, timeout=10))
        with tritonclient.http.InferenceServerClient(f"localhost:{server.http_port}", ssl=True, ssl_options={"ca_certs": ca}) as triton:
            assert triton.is_server_live()


@NO_OPENSSL
@pytest.mark.parametrize("uvloop", [True, False])
def test_large_and_many_messages_through_tls(certificates, submitting_core, uvloop):
    ca, certificate, key, *_ = certificates
    access = Access(certificate, key)
    transport = HttpTransport(submitting_core, "127.0.0.1", 0, Limits(), 4, access=access, uvloop=uvloop)
    context = ssl.create_default_context(cafile=ca)
    large = np.random.default_rng(0).random((1, 1_500_000), dtype=np.float32)
    try:
        connection = http.client.HTTPSConnection("localhost", transport.port, timeout=20, context=context)
        for array in (X, large, X, large[:, :40_000], X):
            message = encode_request(InferRequest("echo", [Tensor("x", array)]))
            for body in (message.body, iter([message.body[:7], message.body[7:]])):  # of known length, and in chunks
                status, fields, answer = ask(connection, INFER, "POST", body, message.headers())
                assert status == 200
                got = decode_response(answer, fields["Inference-Header-Content-Length"]).outputs[0].data
                assert np.array_equal(got, array)
        connection.close()
        with context.wrap_socket(socket.create_connection(("127.0.0.1", transport.port), 10), server_hostname="localhost") as gone:
            gone.sendall(b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n" + b"x" * 100_000)
            gone.shutdown(socket.SHUT_RDWR)  # without TLS's own goodbye
    finally:
        transport.stop(time.monotonic() + 5)
    assert transport._application.budget.used == 0


@NO_OPENSSL
def test_mutual_tls(certificates, submitting_core):
    ca, certificate, key, client_certificate, client_key = certificates
    with serve(submitting_core, ("127.0.0.1", 0), None, access=Access(certificate, key, client_ca=ca)) as server:
        context = ssl.create_default_context(cafile=ca)
        stranger = http.client.HTTPSConnection("localhost", server.http_port, timeout=10, context=context)
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(stranger)
        stranger.close()
        known = ssl.create_default_context(cafile=ca)
        known.load_cert_chain(client_certificate, client_key)
        connection = http.client.HTTPSConnection("localhost", server.http_port, timeout=10, context=known)
        assert ask(connection)[0] == 200
        connection.close()


@NO_OPENSSL
def test_a_key_that_is_not_the_certificates(certificates, submitting_core):
    _, certificate, _, _, other_key = certificates
    with pytest.raises(StorageError, match="certificate"):
        serve(submitting_core, ("127.0.0.1", 0), None, access=Access(certificate, other_key))


def test_token(submitting_core):
    with serve(submitting_core, ("127.0.0.1", 0), None, access=Access(token="s3cret")) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        assert ask(connection, "/v2/health/live")[0] == 200
        assert ask(connection, "/v2/health/ready")[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            for path, method, body in (("/v2", "GET", None), (INFER, "POST", JSON_BODY), ("/v2/repository/index", "POST", b"")):
                status, fields, answer = ask(connection, path, method, body, headers)
                assert (status, fields["WWW-Authenticate"]) == (401, "Bearer")
                assert b"s3cret" not in answer
        for _ in range(3):  # the head is remembered, with what it was allowed
            assert ask(connection, INFER, "POST", JSON_BODY, {"Authorization": "Bearer s3cret"})[0] == 200
            assert ask(connection, INFER, "POST", JSON_BODY)[0] == 401
        connection.close()
        assert len(submitting_core.requests) == 3


def test_without_the_token_no_body_is_waited_for(submitting_core):
    with (
        serve(submitting_core, ("127.0.0.1", 0), None, access=Access(token="s3cret")) as server,
        socket.create_connection(("127.0.0.1", server.http_port), 10) as sock,
    ):
        sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\nx".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 401")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


def test_unix_socket(submitting_core, tmp_path):
    path = tmp_path / "edgekit.sock"
    for _ in range(2):
        with serve(submitting_core, (f"unix:{path}", 0), None) as server:
            assert server.http_port == 0
            connection = UnixConnection(str(path))
            assert ask(connection, INFER, "POST", JSON_BODY)[0] == 200
            assert ask(connection, "/v2/systemsharedmemory/status")[0] == 200  # a unix socket is this machine
            connection.close()
            with pytest.raises(BindError, match=r"the path is in use; expected a path that is free; .*--http"):
                serve(submitting_core, (f"unix:{path}", 0), None)
        assert not path.exists()


def test_a_stale_unix_socket_is_replaced_and_other_files_are_not(submitting_core, tmp_path):
    path = tmp_path / "edgekit.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with serve(submitting_core, (f"unix:{path}", 0), None):
        assert path.is_socket()
    path.write_text("precious")
    with pytest.raises(BindError, match="in use"):
        serve(submitting_core, (f"unix:{path}", 0), None)
    assert path.read_text() == "precious"
    with pytest.raises(BindError, match="cannot be listened on"):
        serve(submitting_core, (f"unix:{tmp_path}/no/folder", 0), None)
    with pytest.raises(BindError, match="up to 107 bytes"):
        serve(submitting_core, (f"unix:{tmp_path}/{'a' * 200}", 0), None)
