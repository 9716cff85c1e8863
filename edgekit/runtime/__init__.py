"""Bundles at work: engines, sessions and the proof that they answer right here."""

from edgekit.runtime._bench import BenchResult, Timing, bench
from edgekit.runtime._core import ResultObserver, RuntimeCore
from edgekit.runtime._finalize import finalize
from edgekit.runtime._load import load
from edgekit.runtime._loaded_model import LoadedModel
from edgekit.runtime._receipts import Receipt, list_receipts, receipts_directory, write_receipt
from edgekit.runtime._repository import ModelRepository
from edgekit.runtime._serve import RuntimeMetrics, serve_bundles
from edgekit.runtime._session import Session
from edgekit.runtime._verify import VerifyResult, verify_bundle
from edgekit.runtime.engines import Engine, EngineOptions

__all__ = [
    "BenchResult",
    "Engine",
    "EngineOptions",
    "LoadedModel",
    "ModelRepository",
    "Receipt",
    "ResultObserver",
    "RuntimeCore",
    "RuntimeMetrics",
    "Session",
    "Timing",
    "VerifyResult",
    "bench",
    "finalize",
    "list_receipts",
    "load",
    "receipts_directory",
    "serve_bundles",
    "verify_bundle",
    "write_receipt",
]
