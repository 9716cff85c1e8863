"""A real HTTP receiver on loopback."""

import contextlib
import gzip
import http.server
import json
import threading

import pytest


class HttpReceiver:
    """A real HTTP/1.1 server on loopback; ``answers`` maps the request number to ``(status, headers, body)``."""

    def __init__(self, answers=None):
        self.requests = []
        self.answers = answers or {}
        self.connections = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                outer.connections += 1

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                number = len(outer.requests)
                outer.requests.append((self.path, dict(self.headers), json.loads(gzip.decompress(body))))
                status, headers, answer = outer.answers.get(number, (200, {}, b"{}"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                if headers.get("Connection") == "close":
                    self.close_connection = True

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()


@pytest.fixture
def http_receiver():
    with contextlib.ExitStack() as stack:

        def start(answers=None):
            receiver = HttpReceiver(answers)
            stack.callback(receiver.close)
            return receiver

        yield start
