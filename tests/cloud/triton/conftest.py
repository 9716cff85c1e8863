"""Fixtures of the Triton tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from affine_bundles import write_affine_bundle


@pytest.fixture
def affine_bundle(tmp_path):
    return write_affine_bundle(tmp_path / "affine")
