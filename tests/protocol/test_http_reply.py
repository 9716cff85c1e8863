"""Answers as bytes."""

import email.utils

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.protocol._http_reply import Reply, date_line, render


@settings(derandomize=True, deadline=None)
@given(st.floats(0, 253_402_300_799))  # the year 9999
def test_dates_are_those_of_the_standard_library(seconds):
    assert date_line(seconds) == f"Date: {email.utils.formatdate(int(seconds), usegmt=True)}\r\n".encode()


def test_a_value_cannot_begin_a_line_of_its_own():
    answer = render(Reply(b"x", {"a": "1\r\nevil: 2"}), b"", keep_alive=True)
    assert answer == b"HTTP/1.1 200 OK\r\na: 1  evil: 2\r\nContent-Length: 1\r\n\r\nx"


def test_what_is_said_about_the_connection():
    for minor, keep_alive, line in ((1, True, b""), (1, False, b"Connection: close\r\n"), (0, True, b"Connection: keep-alive\r\n")):
        answer = render(Reply(b"x"), b"", keep_alive=keep_alive, minor=minor, bodiless=True)
        assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n" + line + b"\r\n"
