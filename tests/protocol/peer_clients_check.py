"""KServe's and MLServer's own clients and message types against our servers. A tool, no test: both live in environments of their own, which ``python -m benchmarks serve`` makes.

``python -m tests.protocol.peer_clients_check [FOLDER]``; the folder of environments is ``out/peers`` when not given. Prints one line for each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgekit.protocol import serve
from tests.protocol.conftest import SubmittingEcho

KSERVE = """
import asyncio, sys
import numpy as np
from kserve import InferInput, InferRequest, InferenceRESTClient, RESTConfig
try:
    from kserve import InferenceGRPCClient
except ImportError:
    from kserve.inference_client import InferenceGRPCClient

def request(binary):
    tensor = InferInput("x", [2, 4], "FP32")
    tensor.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4), binary_data=binary)
    return InferRequest("echo", [tensor], request_id="7")

async def main():
    base = f"http://127.0.0.1:{sys.argv[1]}"
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await rest.is_server_ready(base) and await rest.is_server_live(base) and await rest.is_model_ready(base, "echo")
    for binary in (True, False):
        answer = await rest.infer(base, request(binary), model_name="echo")
        assert answer.id == "7" and answer.outputs[0].as_numpy().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]], answer
    grpc = InferenceGRPCClient(f"127.0.0.1:{sys.argv[2]}")
    assert await grpc.is_server_ready() and await grpc.is_model_ready("echo")
    answer = await grpc.infer(request(True))
    assert answer.outputs[0].as_numpy().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]], answer
    await grpc.close()

asyncio.run(main())
"""
MLSERVER = """
import sys, urllib.request
import grpc
import numpy as np
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.grpc import dataplane_pb2 as pb, dataplane_pb2_grpc
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse

array = np.arange(8, dtype=np.float32).reshape(2, 4)
def request():  # made anew for each: the converter takes the tensors out of it
    return InferenceRequest(id="7", inputs=[NumpyCodec.encode_input("x", array), StringCodec.encode_input("s", ["a", "b"])])

base = f"http://127.0.0.1:{sys.argv[1]}/v2/models/echo"
MetadataModelResponse.model_validate_json(urllib.request.urlopen(base).read())
sent = urllib.request.Request(base + "/infer", request().model_dump_json(exclude_none=True).encode(), {"Content-Type": "application/json"})
answer = InferenceResponse.model_validate_json(urllib.request.urlopen(sent).read())
assert np.array_equal(NumpyCodec.decode_output(answer.outputs[0]), array), answer
assert StringCodec.decode_output(answer.outputs[1]) == ["a", "b"], answer
with grpc.insecure_channel(f"127.0.0.1:{sys.argv[2]}") as channel:
    stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)
    assert stub.ServerReady(pb.ServerReadyRequest()).ready and stub.ModelReady(pb.ModelReadyRequest(name="echo")).ready
    for raw in (True, False):
        answer = ModelInferResponseConverter.to_types(stub.ModelInfer(ModelInferRequestConverter.from_types(request(), model_name="echo", use_raw=raw)))
        assert answer.id == "7" and np.array_equal(NumpyCodec.decode_output(answer.outputs[0]), array), answer
"""


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/peers")
    worst = 0
    with serve(SubmittingEcho(), ("127.0.0.1", 0), ("127.0.0.1", 0)) as server:
        for name, script in (("kserve", KSERVE), ("mlserver", MLSERVER)):
            command = [str(folder / name / "bin" / "python"), "-c", script, str(server.http_port), str(server.grpc_port)]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
            print(name, "ok" if not done.returncode else done.stderr[-2000:])
            worst |= done.returncode
    return worst


if __name__ == "__main__":
    sys.exit(main())
