"""Compile ``open_inference.proto`` again: ``python tests/protocol/compile_proto.py`` (needs grpcio-tools, in the extra ``dev``)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "edgekit" / "protocol"


def compile_descriptor() -> bytes:
    """The serialized ``FileDescriptorSet`` of the committed ``.proto``, without source positions."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.binpb"
        # A process of its own: protoc crashes where TensorFlow's copy of protobuf was loaded before it.
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={FOLDER}",
            f"--descriptor_set_out={target}",
            "open_inference.proto",
        ]
        subprocess.run(command, check=True)
        return target.read_bytes()


if __name__ == "__main__":
    (FOLDER / "open_inference.binpb").write_bytes(compile_descriptor())
