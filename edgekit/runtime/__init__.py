"""Bundles at work: engines, sessions and the proof that they answer right here."""

from edgekit.runtime._core import ResultObserver, RuntimeCore
from edgekit.runtime._load import load
from edgekit.runtime._repository import LoadedModel, ModelRepository
from edgekit.runtime._serve import RuntimeMetrics, serve_bundles
from edgekit.runtime._session import Session
from edgekit.runtime._verify import VerifyResult, verify_bundle
from edgekit.runtime.engines import Engine, EngineOptions

__all__ = [
    "Engine",
    "EngineOptions",
    "LoadedModel",
    "ModelRepository",
    "ResultObserver",
    "RuntimeCore",
    "RuntimeMetrics",
    "Session",
    "VerifyResult",
    "load",
    "serve_bundles",
    "verify_bundle",
]
