"""The cases in scope, found once."""

import pytest

from edgekit.converters import conformance


@pytest.fixture(scope="session")
def cases():
    return {case.name: case for case in conformance.scope()}
