"""The Triton tier: model repositories from bundles, and a real local server on them."""

from edgekit.cloud.triton._config import ModelConfig, TensorConfig, render
from edgekit.cloud.triton._environment import TritonEnvironment, find_environment, install_environment
from edgekit.cloud.triton._repository import RepositoryModel, plan_model, write_repository
from edgekit.cloud.triton._server import TritonServer

__all__ = [
    "ModelConfig",
    "RepositoryModel",
    "TensorConfig",
    "TritonEnvironment",
    "TritonServer",
    "find_environment",
    "install_environment",
    "plan_model",
    "render",
    "write_repository",
]
