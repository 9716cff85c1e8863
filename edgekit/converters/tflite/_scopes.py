"""Names that tie the operators of a ``.tflite`` file to tensors of the source: each node is built inside a TensorFlow name scope of its own."""

from __future__ import annotations

import re

__all__ = ["scope_of", "scopes_in"]


def scope_of(tensor: str) -> str:
    """The scope of the node that makes a tensor: its name with the characters that TensorFlow's scopes do not take replaced.

    Two tensors whose names differ in such characters only share a scope; TensorFlow then numbers the second.
    """
    plain = re.sub(r"[^A-Za-z0-9_.\-]", "_", tensor)
    return plain if re.match(r"[A-Za-z0-9.]", plain) else f"t{plain}"


def scopes_in(name: str) -> list[str]:
    """The scopes that a tensor of the file was made in.

    The converter names a tensor of fused operators after all of them, in an order that differs from kernel to kernel
    (``last/Relu;first/BiasAdd;…``, ``first/MatMul;last/Relu;first/add``): its values are those of the node that comes last in the model.
    """
    return [part.partition("/")[0] for part in name.split(";") if "/" in part]
