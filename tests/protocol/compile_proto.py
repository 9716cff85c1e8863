"""Compile the ``.proto`` files again: ``python tests/protocol/compile_proto.py`` (needs grpcio-tools, in the extra ``dev``)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "edgekit" / "protocol"
# Descriptor set -> the texts in it, from `FOLDER`.
SETS = {
    "open_inference.binpb": ["open_inference.proto"],
    "standard.binpb": ["standard/health.proto", "standard/reflection.proto", "standard/reflection_v1alpha.proto"],
}
# A text that is another one in a package of another name.
COPIES = {"standard/reflection_v1alpha.proto": ("standard/reflection.proto", "grpc.reflection.v1;", "grpc.reflection.v1alpha;")}


def compile_descriptor(name: str) -> bytes:
    """The serialized ``FileDescriptorSet`` of the committed texts, without source positions."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.binpb"
        for text in SETS[name]:
            source, old, new = COPIES.get(text, (text, "", ""))
            (Path(folder) / text).parent.mkdir(exist_ok=True)
            (Path(folder) / text).write_text((FOLDER / source).read_text().replace(old, new))
        # A process of its own: protoc crashes where TensorFlow's copy of protobuf was loaded before it.
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={folder}", f"--descriptor_set_out={target}", *SETS[name]]
        subprocess.run(command, check=True)
        return target.read_bytes()


if __name__ == "__main__":
    for name in SETS:
        (FOLDER / name).write_bytes(compile_descriptor(name))
