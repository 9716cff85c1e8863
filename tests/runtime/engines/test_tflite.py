"""LiteRT's own matters: whose delegate took the graph, which signature runs, and accelerators that are not here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import EngineError, EnvironmentMissingError
from edgekit.runtime import EngineOptions
from edgekit.runtime.engines import Engine, open_engine
from edgekit.runtime.engines._tflite_runners import count_delegated, pick_signature

Built = Callable[..., Bundle]

# A delegate as vendors ship them, by LiteRT's plug-in interface (tflite/delegates/external), that finds nothing it could take.
TAKES_NOTHING = """
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
typedef struct Delegate {
  void* data;
  int (*prepare)(void*, struct Delegate*);
  void *copy_from, *copy_to, *release;
  int64_t flags;
  void* builder;
} Delegate;
static int prepare(void* context, Delegate* delegate) { return 0; }
void* tflite_plugin_create_delegate(const char* const* keys, const char* const* values, size_t count, void (*report)(const char*)) {
  Delegate* made = calloc(1, sizeof(Delegate));
  made->prepare = prepare;
  return made;
}
void tflite_plugin_destroy_delegate(void* made) { free(made); }
"""


def opened(bundle: Bundle, accelerator: str) -> Engine:
    artifact = bundle.manifest.artifact
    return open_engine(bundle.artifact_path(artifact), artifact, bundle.signature, EngineOptions(threads=1, accelerator=accelerator))


@pytest.mark.slow
def test_a_delegate_that_takes_nothing_is_refused_though_xnnpack_takes_all(built: Built, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, library = tmp_path / "none.c", tmp_path / "libnone.so"
    source.write_text(TAKES_NOTHING)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    with pytest.raises(EngineError, match=r"delegate .*libnone\.so takes none of [1-9]\d* operators of model\.tflite"):
        opened(built("tflite"), str(library))


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["tpu", "/nowhere/libdelegate.so"])
def test_a_delegate_library_that_is_not_here(accelerator: str, built: Built) -> None:
    with pytest.raises(EnvironmentMissingError, match="does not load"):
        opened(built("tflite"), accelerator)


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["gpu", "npu"])
def test_an_accelerator_takes_the_whole_graph_or_is_refused(accelerator: str, built: Built) -> None:
    delegated, refusal = "all operators", ""
    try:
        engine = opened(built("tflite"), accelerator)
        delegated = engine.describe()["delegated"]
        engine.close()
    except EngineError as exc:
        refusal = str(exc)
    assert delegated == "all operators"
    assert refusal == "" or f"{accelerator} does not start, or does not take the graph" in refusal
    assert "\n" not in refusal


@pytest.mark.slow
def test_open_shapes_are_not_for_a_compiled_model(built: Built) -> None:
    with pytest.raises(EngineError, match="fixed shapes for gpu"):
        opened(built("tflite", "open"), "gpu")


@pytest.mark.slow
def test_says_how_much_xnnpack_took(built: Built) -> None:
    engine = opened(built("tflite"), "cpu")
    facts = engine.describe()
    engine.close()
    taken, total = facts["delegated"].removesuffix(" operators").split(" of ")
    assert 1 <= int(taken) <= int(total)
    assert (facts["delegate"], facts["runner"]) == ("XNNPACK", "interpreter")


def operator(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict[str, object]:
    return {"index": index, "op_name": name, "inputs": np.array(inputs), "outputs": np.array(outputs)}


CHAIN = [
    operator(0, "PAD", [0], [1]),
    operator(1, "CONV_2D", [1, 9], [2]),
    operator(2, "CUSTOM", [2], [3]),
    operator(3, "SOFTMAX", [3], [4]),
]
DELEGATED = {
    "nothing": ([], 0),
    "all": ([operator(4, "DELEGATE", [0, 9], [4])], 4),
    "up to the custom operator": ([operator(4, "DELEGATE", [0, 9], [2])], 2),
    "on both sides of it": ([operator(4, "DELEGATE", [0, 9], [2]), operator(5, "DELEGATE", [3], [4])], 3),
}


@pytest.mark.parametrize("case", DELEGATED)
def test_count_delegated(case: str) -> None:
    delegates, inside = DELEGATED[case]
    assert count_delegated([*CHAIN, *delegates]) == (inside, 4)


def test_pick_signature() -> None:
    path = Path("model.tflite")
    assert pick_signature([], "", path) == ""
    assert pick_signature(["main"], "", path) == "main"
    assert pick_signature(["encode", "serving_default"], "", path) == "serving_default"
    assert pick_signature(["encode", "decode"], "decode", path) == "decode"
    with pytest.raises(EngineError, match="several signatures; expected one of encode, decode"):
        pick_signature(["encode", "decode"], "", path)
    with pytest.raises(EngineError, match="no signature 'encore'; expected one of encode"):
        pick_signature(["encode"], "encore", path)
