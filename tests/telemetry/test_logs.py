"""Structured logs on stderr."""

import io
import json
import logging

import pytest

from edgekit.telemetry import configure_logging


@pytest.fixture(autouse=True)
def restore():
    logger = logging.getLogger("edgekit")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


def test_json_lines_with_fields_and_errors():
    stream = io.StringIO()
    configure_logging(json=True, level="debug", stream=stream)
    configure_logging(json=True, level="info", stream=stream)
    logger = logging.getLogger("edgekit.x")
    logger.debug("not written")
    logger.info("loaded %s\nin two lines", "m", extra={"seconds": 1.5, "path": io, "level": "forged"})
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "loaded m\nin two lines"
    assert (first["level"], first["logger"], first["seconds"]) == ("info", "edgekit.x", 1.5)
    assert first["ts"].endswith("Z")
    assert "ValueError: why" in second["error"]


def test_text_lines_carry_the_fields_too():
    stream = io.StringIO()
    configure_logging(stream=stream)
    logging.getLogger("edgekit.x").warning("slow", extra={"seconds": 2})
    assert stream.getvalue().rstrip().endswith("WARNING edgekit.x: slow seconds=2")
