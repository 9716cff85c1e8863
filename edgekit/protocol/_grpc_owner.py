"""What the gRPC connections of one server share: the engine's limits, who may connect, and how much is open.

The engine (ngh2) holds peers to RFC 9113 and to the limits given here: rapid resets (CVE-2023-44487), CONTINUATION floods (CVE-2024-27316), header lists,
concurrent streams.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from edgekit.protocol._access import Access
from edgekit.protocol._grpc_dispatch import Dispatcher

if TYPE_CHECKING:
    import ngh2

    from edgekit.protocol._grpc_connection import GrpcConnection

__all__ = ["ConnectionOwner"]

_MAX_STREAMS = 256  # calls of one connection at once; the client holds back the rest
_STREAM_WINDOW_BYTES = 1 << 20
_MAX_HEADER_BYTES = 16 << 10
_READ_BYTES = 256 << 10
_MAX_FRAME_BYTES = 1 << 20  # DATA is taken as it comes, so a large frame holds no memory


def _settings(h2: ModuleType) -> dict[ngh2.Setting, int]:
    """What the server allows its clients."""
    setting = h2.Setting
    return {
        setting.HEADER_TABLE_SIZE: 4096,
        setting.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
        setting.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
        setting.MAX_FRAME_SIZE: _MAX_FRAME_BYTES,
        setting.MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
    }


def _configuration(h2: ModuleType) -> ngh2.Configuration:
    """What the engine holds clients to."""
    found: ngh2.Configuration = h2.Configuration(
        auto_window_update=False,
        max_inbound_header_list_size=_MAX_HEADER_BYTES,
        max_inbound_header_count=128,
        max_continuations=8,
        max_settings=32,
        max_outbound_ack=1000,
        stream_reset_rate_limit=(1000, 100),  # burst, and a second; cancelling clients reset, flooding ones do nothing else
        glitch_rate_limit=(1000, 100),
    )
    return found


class ConnectionOwner:
    """What the connections of one transport share.

    Attributes:
        h2: the package ngh2, which is imported when a server starts.
        connections: open ones.
        buffer: what is read from any of them.
        open_calls: of all connections together.
        held_bytes: of messages that are not complete or have not begun, all connections together.
        draining: no new connection, no new call.
    """

    def __init__(self, dispatcher: Dispatcher, access: Access, max_connections: int) -> None:
        import ngh2

        self.h2: ModuleType = ngh2
        self.settings = _settings(ngh2)
        self.configuration = _configuration(ngh2)
        self.dispatcher = dispatcher
        self.access = access
        self.max_connections = max_connections
        self.max_held_bytes = max(64 << 20, 2 * dispatcher.message_limit_bytes)
        self.connections: set[GrpcConnection] = set()
        self.buffer = memoryview(bytearray(_READ_BYTES))
        self.open_calls = 0
        self.held_bytes = 0
        self.draining = False
