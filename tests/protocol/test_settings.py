"""Log settings: what changes really changes, what is not there is refused."""

import logging

import pytest

from edgekit.errors import RequestError
from edgekit.protocol._settings import LogSettings


@pytest.fixture
def logger():
    return logging.Logger("edgekit.test", logging.WARNING)  # noqa: LOG001 - in no tree, so that nothing else changes


def test_the_level_really_changes(logger):
    settings = LogSettings(logger)
    assert settings.read() == {
        "log_error": True,
        "log_warning": True,
        "log_info": False,
        "log_verbose_level": 0,
        "log_file": "",
        "log_format": "default",
    }
    assert settings.update({"log_verbose_level": 1})["log_info"] is True  # the loudest includes the others
    assert settings.update({"log_verbose_level": 0})["log_info"] is True
    assert logger.level == logging.INFO
    settings.update({"log_verbose_level": 2})
    assert logger.level == logging.DEBUG
    settings.update({"log_verbose_level": 0, "log_info": False, "log_warning": False})
    assert logger.level == logging.ERROR
    assert not logger.isEnabledFor(logging.WARNING)
    settings.update({"log_error": False})
    assert not logger.isEnabledFor(logging.CRITICAL)
    assert settings.update({"log_verbose_level": None})["log_warning"] is True
    assert logger.level == logging.WARNING


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"log_colour": True}, "log setting 'log_colour': no such setting"),
        ({"log_info": 1}, "expected true or false"),
        ({"log_verbose_level": True}, "expected 0"),
        ({"log_verbose_level": -1}, "expected 0"),
        ({"log_file": "/etc/passwd"}, "log setting 'log_file'"),
        ({"log_format": "ISO8601"}, "expected 'default'"),
        ({"log_info": True, "log_warning": False}, "on while log_warning is off"),
        ({"log_verbose_level": 1, "log_info": False}, "off while log_verbose_level is on"),
    ],
)
def test_bad_log_settings(logger, wanted, message):
    settings = LogSettings(logger)
    settings.update({"log_info": True})
    for given in (wanted, {"log_file": None, **wanted}):  # None asks for what it was at the start, which a refused update gives as little
        with pytest.raises(RequestError) as caught:
            settings.update(given)
        assert message in str(caught.value)
        assert logger.level == logging.INFO
