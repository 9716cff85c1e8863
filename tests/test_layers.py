"""The device side imports with NumPy and msgspec alone, and imports go up the design's table only."""

import subprocess
import sys

DEVICE_SIDE = ["errors", "device_profiles", "bundle", "protocol", "telemetry", "runtime", "router"]

# Runs in a fresh interpreter: everything but the standard library, NumPy, msgspec and ourselves cannot be imported.
BARE = """
import importlib, pkgutil, sys
allowed = set(sys.stdlib_module_names) | {"numpy", "msgspec", "edgekit"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
import edgekit
count = 0
for part in sys.argv[1:]:
    root = importlib.import_module(f"edgekit.{part}")
    for module in pkgutil.walk_packages(getattr(root, "__path__", []), f"edgekit.{part}."):
        importlib.import_module(module.name)
        count += 1
print(count)
"""

HELP = """
import sys
blocked = {"onnx", "onnxruntime", "openvino", "tensorflow", "ai_edge_litert", "coremltools", "aiohttp", "grpc", "google", "chdb", "clickhouse_connect",
           "tensorrt_rtx_bindings", "tritonclient", "matplotlib", "skimage", "PIL", "psutil", "opentelemetry", "onnxslim"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
from edgekit.cli._app import run
commands = ["", "devices", "devices show", "devices probe", "build", "inspect", "verify", "finalize", "run", "bench", "serve", "route", "collector",
            "policy", "policy check", "cloud", "cloud repository", "cloud up", "cloud report", "demo"]
for command in commands:
    assert run([*command.split(), "--help"]) == 0, command
"""


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_device_side_imports_with_numpy_and_msgspec_alone():
    done = python(BARE, *DEVICE_SIDE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_the_blocker_blocks():
    done = python(BARE.replace("import edgekit\n", "import onnx\n"), "errors")
    assert done.returncode != 0
    assert "blocked" in done.stderr


def test_every_help_works_with_nothing_optional_installed():
    done = python(HELP)
    assert done.returncode == 0, done.stderr + done.stdout[-500:]


def test_without_typer_the_command_says_what_to_install():
    done = python(
        "import sys; sys.modules['typer'] = None; import importlib.util as u; u.find_spec = lambda n: None; from edgekit.cli import main; main()"
    )
    assert done.returncode == 1
    assert "edgekit-ml[cli]" in done.stderr
