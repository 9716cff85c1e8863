"""Open Inference Protocol v2: types, codecs, clients and servers. Importing it brings no transport; those load in the calls that need them."""

from edgekit.protocol._access import Access, Credentials
from edgekit.protocol._client import InferenceClient, InFlight, connect
from edgekit.protocol._deadline import DEADLINE_HEADER, absolute_deadline
from edgekit.protocol._server import Server, serve
from edgekit.protocol._target import is_server_url
from edgekit.protocol._tensors import Limits
from edgekit.protocol._types import (
    OIP_DTYPES,
    InferenceCore,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Parameters,
    RepositoryEntry,
    RequestedOutput,
    ServerMetadata,
    SteppingCore,
    SubmittingCore,
    Tensor,
    TensorMetadata,
    Ticket,
    numpy_dtype,
    oip_datatype,
)

__all__ = [
    "DEADLINE_HEADER",
    "OIP_DTYPES",
    "Access",
    "Credentials",
    "InFlight",
    "InferRequest",
    "InferResponse",
    "InferenceClient",
    "InferenceCore",
    "Limits",
    "ModelMetadata",
    "Parameters",
    "RepositoryEntry",
    "RequestedOutput",
    "Server",
    "ServerMetadata",
    "SteppingCore",
    "SubmittingCore",
    "Tensor",
    "TensorMetadata",
    "Ticket",
    "absolute_deadline",
    "connect",
    "is_server_url",
    "numpy_dtype",
    "oip_datatype",
    "serve",
]
