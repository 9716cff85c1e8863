"""The command line, called in process, and one bundle that it built."""

import json
import signal
from dataclasses import dataclass

import pytest

from edgekit.cli._app import run


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def error(self):
        """The one line that a user sees."""
        lines = [line for line in self.err.splitlines() if line.startswith("edgekit: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def edgekit(capfd):
    # Commands that stay up take the signals; the test process gets them back.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments):
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(status, out, err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def mlp_bundle(tiny_mlp, tmp_path_factory):
    from edgekit.converters import build

    return build(tiny_mlp, device="generic-x86", name="mlp", output=tmp_path_factory.mktemp("cli") / "mlp.edgekit").path
