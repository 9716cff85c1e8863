"""A gRPC server of ngh2 for the loop of a test, which answers each connection's calls as it is told: what no well-behaved server does."""

import asyncio
import contextlib

import ngh2

__all__ = ["HEADERS", "Scripted", "scripted"]

HEADERS = [(b":status", b"200"), (b"content-type", b"application/grpc")]


class Scripted(asyncio.Protocol):
    """One connection. Calls of ``script`` are ``(connection, stream_id, message)``; each answers one call, the last one all that follow."""

    def __init__(self, script, seen):
        self.script = script
        self.seen = seen  # (headers, message) of each call
        self.h2 = ngh2.Connection(ngh2.Role.SERVER, ngh2.Configuration())
        self.calls = {}
        self.resets = []

    def connection_made(self, transport):
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data):
        self.h2.receive_data(data)
        for event in self.h2.events():
            if isinstance(event, ngh2.RequestReceived):
                self.calls[event.stream_id] = [dict(event.headers), b""]
            elif isinstance(event, ngh2.DataReceived):
                call = self.calls[event.stream_id]
                call[1] += event.data
                if event.end_stream:
                    self.seen.append((self, *call))
                    (self.script.pop(0) if len(self.script) > 1 else self.script[0])(self, event.stream_id, call[1])
            elif isinstance(event, ngh2.StreamReset):
                self.resets.append(event.stream_id)
        self.flush()

    def flush(self, piece=None):
        data = self.h2.data_to_send()
        for start in range(0, len(data), piece or len(data) or 1):
            self.transport.write(data[start : start + (piece or len(data))])

    def answer(self, stream_id, body, trailers=((b"grpc-status", b"0"),), headers=HEADERS):
        self.h2.send_response(stream_id, headers)
        if body:
            self.h2.send_data(stream_id, body)
        self.h2.send_trailers(stream_id, trailers) if trailers else self.h2.end_stream(stream_id)


@contextlib.asynccontextmanager
async def scripted(*script):
    """Port, and the calls that came."""
    seen, connections = [], []

    def made():
        connections.append(Scripted(left, seen))
        return connections[-1]

    left = list(script)
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        for connection in connections:
            connection.transport.abort()
        await asyncio.sleep(0)
