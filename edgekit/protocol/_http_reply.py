"""HTTP answers as bytes. Pure."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

import msgspec

from edgekit.errors import EdgeKitError
from edgekit.protocol._http_parse import HttpError
from edgekit.protocol._remote_errors import ERROR_HEADER

__all__ = ["CONTINUE", "Reply", "date_line", "error_reply", "internal_error", "json_reply", "render"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_JSON = {"Content-Type": "application/json"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Reply(msgspec.Struct, frozen=True):
    """One answer before it is bytes."""

    body: bytes = b""
    headers: dict[str, str] = {}
    status: int = 200


def render(reply: Reply, date: bytes, *, keep_alive: bool, minor: int = 1, bodiless: bool = False) -> bytes:
    """The answer's bytes.

    Args:
        reply: what to say.
        date: `date_line`.
        keep_alive: whether the connection stays open; said where it is not the version's default.
        minor: HTTP version of the request.
        bodiless: the request was HEAD: the length is said, the body is not sent.
    """
    lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Unknown')}\r\n".encode("ascii"), date]
    lines += [f"{name}: {_one_line(value)}\r\n".encode("latin-1", "replace") for name, value in reply.headers.items()]
    lines.append(b"Content-Length: %d\r\n" % len(reply.body))
    if not keep_alive:
        lines.append(b"Connection: close\r\n")
    elif minor == 0:
        lines.append(b"Connection: keep-alive\r\n")
    lines.append(b"\r\n")
    if not bodiless:
        lines.append(reply.body)
    return b"".join(lines)


def date_line(seconds: float) -> bytes:
    """The ``Date`` field (RFC 9110, 6.6.1) for a time since the Unix epoch."""
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(seconds)
    date = f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
    return f"Date: {date}\r\n".encode("ascii")


def json_reply(document: Any, status: int = 200) -> Reply:
    """An answer in JSON."""
    return Reply(msgspec.json.encode(document), _JSON, status)


def error_reply(error: EdgeKitError) -> Reply:
    """The answer for an error of ours: its status, its line, and its type where a client of ours wants to know it."""
    headers = dict(_JSON)
    if not isinstance(error, HttpError):
        headers[ERROR_HEADER] = type(error).__name__
    elif error.http_status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = error.expected
    elif error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return Reply(msgspec.json.encode({"error": str(error)}), headers, error.http_status)


def internal_error(error_id: str) -> Reply:
    """The answer for a bug of ours: an id that the log has as well, and nothing else."""
    line = f"internal error {error_id}; the server's log has the details"
    return Reply(msgspec.json.encode({"error": line}), _JSON, 500)


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")
