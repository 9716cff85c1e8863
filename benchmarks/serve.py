"""HTTP servers side by side in one run: ours, a bare asyncio protocol, aiohttp, FastAPI, MLServer, KServe, BentoML, LitServe, Ray Serve and Triton.

Models: ``mlp`` (768 float32 in, 10 out, dynamic batch) and ``classifier`` (PP-OCR's angle classifier, 110 kB a request). Each server gets the densest encoding that
it takes: the protocol's binary extension, JSON for MLServer, bytes or base64 for those with protocols of their own. ``probe`` parses only what this load sends, without limits or
errors: a ceiling for Python, not a server. How it is measured is in `_side_by_side` and docs/benchmarks.md.

What it does not show: a network, many different clients, or any other mix of requests. Each answer's status is checked, and the first answer's numbers.

Run ``python -m benchmarks serve [--model mlp|classifier] [--servers a,b] [--connections 1,16] [--seconds S] [--rounds R]``. Needs ``wrk`` (Debian has it) and two
cores. Peers install themselves under ``out/peers`` on their first run; Triton is ``.venv-triton`` (`make setup`).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _side_by_side
from benchmarks._cases import MODELS, Case
from benchmarks._traffic import HttpTraffic

SERVERS = ["edgekit", "edgekit-asyncio", "probe", "triton", "aiohttp", "fastapi", "mlserver", "kserve", "bentoml", "litserve", "ray-serve"]
ENCODINGS = {"mlserver": "v2 JSON", "bentoml": "raw", "litserve": "base64", "ray-serve": "raw"}


def traffic_for(server: str, case: Case, folder: Path) -> HttpTraffic:
    return HttpTraffic(case, ENCODINGS.get(server, "v2 binary"), folder)


if __name__ == "__main__":
    _side_by_side.main("http", __doc__, SERVERS, MODELS, traffic_for)
