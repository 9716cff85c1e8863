"""Compile ``open_inference.proto`` again: ``python tests/protocol/compile_proto.py`` (needs grpcio-tools, in the extra ``dev``)."""

from __future__ import annotations

import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "edgekit" / "protocol"


def compile_descriptor() -> bytes:
    """The serialized ``FileDescriptorSet`` of the committed ``.proto``, without source positions."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.binpb"
        arguments = ["protoc", f"--proto_path={FOLDER}", f"--descriptor_set_out={target}", "open_inference.proto"]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc refused open_inference.proto")
        return target.read_bytes()


if __name__ == "__main__":
    (FOLDER / "open_inference.binpb").write_bytes(compile_descriptor())
