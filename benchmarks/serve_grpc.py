"""gRPC servers side by side in one run: ours, Triton, MLServer and KServe with a model, and, without a model, our transport and grpcio's two.

The request is 768 float32 as raw contents. The echoes say what a transport costs: they take the request and give the same answer; ours decodes and encodes
both, grpcio's hand bytes through. How it is measured is in `_side_by_side` and docs/benchmarks.md.

What it does not show: a network, many different clients, or any other mix of requests. The first answer's numbers are checked, and the number of bytes of all others.

Run ``python -m benchmarks serve_grpc [--model mlp|classifier] [--servers a,b] [--connections 1,16] [--seconds S] [--rounds R]``. Needs ``h2load`` (Debian:
nghttp2-client) and two cores. Peers install themselves under ``out/peers`` on their first run; Triton is ``.venv-triton`` (`make setup`).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import _side_by_side
from benchmarks._cases import MODELS, Case
from benchmarks._traffic import GrpcTraffic

SERVERS = ["edgekit", "triton", "mlserver", "kserve", "edgekit-echo", "edgekit-echo-asyncio", "grpcio-echo", "grpcio-aio-echo"]


def traffic_for(server: str, case: Case, folder: Path) -> GrpcTraffic:
    del server
    return GrpcTraffic(case, folder)


if __name__ == "__main__":
    _side_by_side.main("grpc", __doc__, SERVERS, MODELS, traffic_for)
