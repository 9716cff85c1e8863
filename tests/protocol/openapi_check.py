"""The protocol's OpenAPI document, as MLServer publishes it, against our HTTP server with schemathesis. A tool, no test: both live in environments of their own.

``python -m tests.protocol.openapi_check SCHEMATHESIS DATAPLANE_JSON [REPOSITORY_JSON]``, for example with what ``python -m benchmarks serve`` and
``uv venv out/peers/schemathesis`` install::

    python -m tests.protocol.openapi_check out/peers/schemathesis/bin/schemathesis \
        out/peers/mlserver/lib/python3.11/site-packages/mlserver/rest/openapi/dataplane.json

The document is mended where OpenAPI does not allow what it says (a type "bytes") and where it goes beyond the protocol (objects as parameters), told the names of the models, and told of the statuses 404 and 405, which
it leaves out. Paths of MLServer's own (``infer_stream``, ``generate``) are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from edgekit.protocol import serve
from tests.protocol.conftest import SubmittingEcho

OWN = ("generate", "stream")


def mended(document: dict) -> dict:
    document["paths"] = {path: item for path, item in document["paths"].items() if not any(word in path for word in OWN)}
    schemas = document.get("components", {}).get("schemas", {})
    if "TensorData" in schemas:
        schemas["TensorData"] = {"type": "array"}
        schemas["Parameters"] = {
            "type": "object",
            "additionalProperties": {"oneOf": [{"type": kind} for kind in ("string", "number", "boolean")]},
        }  # as the protocol has it
    for item in document["paths"].values():
        for parameter in item.get("parameters", []):
            if parameter["name"] == "model_name":
                parameter["schema"] = {"type": "string", "enum": ["echo", "nan", "nothing"]}
        for verb in ("get", "post"):
            for status in (404, 405):
                if verb in item:
                    item[verb]["responses"].setdefault(str(status), {"description": "refused"})
                    item[verb]["responses"].setdefault("400", {"description": "refused"})
    return document


def main() -> int:
    schemathesis, *documents = sys.argv[1:]
    worst = 0
    with serve(SubmittingEcho(), ("127.0.0.1", 0), None) as server, tempfile.TemporaryDirectory() as folder:
        for name in documents:
            path = Path(folder) / Path(name).name
            path.write_text(json.dumps(mended(json.loads(Path(name).read_text()))))
            command = [schemathesis, "run", str(path), "--url", f"http://127.0.0.1:{server.http_port}", "--seed", "1", "--no-color"]
            command += ["--exclude-checks", "positive_data_acceptance"]  # the document cannot say that data must fit shape and datatype
            worst |= subprocess.run([*command, "--max-examples", "100", "--phases", "examples,coverage,fuzzing"], check=False).returncode
    return worst


if __name__ == "__main__":
    sys.exit(main())
