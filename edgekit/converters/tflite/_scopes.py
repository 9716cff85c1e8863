"""Names that tie the operators of a ``.tflite`` file to tensors of the source: each node is built inside a TensorFlow name scope of its own."""

from __future__ import annotations

import re

__all__ = ["scope_in", "scope_of"]


def scope_of(tensor: str) -> str:
    """The scope of the node that makes a tensor: its name with the characters that TensorFlow's scopes do not take replaced.

    Two tensors whose names differ in such characters only share a scope; TensorFlow then numbers the second.
    """
    plain = re.sub(r"[^A-Za-z0-9_.\-]", "_", tensor)
    return plain if re.match(r"[A-Za-z0-9.]", plain) else f"t{plain}"


def scope_in(name: str) -> str:
    """The scope that a tensor of the file was made in, "" when there is none.

    The converter names a tensor of fused operators after all of them (``last/Relu;first/BiasAdd;…``); the first made the values.
    """
    return name.split(";", 1)[0].partition("/")[0] if "/" in name.split(";", 1)[0] else ""
