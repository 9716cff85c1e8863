"""Who speaks when, while it is said: ``python examples/live_voice.py [RECORDING.wav] [--live]`` builds Silero VAD so that the server keeps its state, serves it, and
sends a recording in chunks of 32 ms: over a gRPC stream, over HTTP with a sequence id, and as one request that is answered with server-sent events.

The recording is 16-bit mono at 16 kHz; without one, a real voice of nine seconds is fetched (`recordings`). ``--live`` sends a chunk every 32 ms, as a microphone would. The clients are Triton's own.
"""

from __future__ import annotations

import http.client
import json
import queue
import sys
import tempfile
import time
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `examples` itself, when this file is run as a script

import numpy as np

import edgekit
from edgekit.bundle import Bundle
from edgekit.runtime import serve_bundles
from examples.models import fetch
from examples.recordings import voice

__all__ = [
    "CHUNK",
    "CONTEXT",
    "RATE",
    "build",
    "in_process",
    "main",
    "over_events",
    "over_grpc",
    "over_http",
    "read_wav",
    "spoken",
    "windows",
]

RATE = 16_000
CHUNK, CONTEXT = 512, 64  # new samples of a request, and those of the one before that the model wants to see again
MODEL = "silero-vad"


def build(folder: Path, device: str = "generic-x86") -> Bundle:
    """The bundle: its input ``state`` is what its output ``stateN`` was."""
    return edgekit.build(fetch(MODEL), device=device, name=MODEL, states=["state=stateN"], output=folder / f"{MODEL}.edgekit")


def read_wav(path: str) -> np.ndarray:
    """Samples in [-1, 1), float32."""
    with wave.open(path) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, RATE):
            sys.exit(
                f"{path}: {file.getnchannels()} channel(s), {8 * file.getsampwidth()} bits, {file.getframerate()} Hz; expected 1, 16, {RATE}"
            )
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def padded(sound: np.ndarray) -> np.ndarray:
    """The sound after the silence that its first chunk has as context, float32 ``[1,64+n]``."""
    return np.concatenate([np.zeros(CONTEXT, np.float32), sound])[np.newaxis]


def windows(sound: np.ndarray) -> Iterator[np.ndarray]:
    """What each request sends, float32 ``[1,576]``; what fills no chunk at the end is left out."""
    whole = padded(sound)
    for start in range(0, len(sound) - CHUNK + 1, CHUNK):
        yield whole[:, start : start + CONTEXT + CHUNK]


def in_process(bundle: Bundle, sound: np.ndarray) -> list[float]:
    """Speech probability of each chunk, without a server."""
    with edgekit.load(bundle) as session, session.stream() as stream:
        return [float(stream.run({"input": window})["output"][0, 0]) for window in windows(sound)]


def over_http(port: int, sound: np.ndarray, sequence: int = 1, pace_s: float = 0.0) -> list[float]:
    """The same over HTTP, one request after another."""
    import tritonclient.http as triton

    found = []
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        for window, first, last in _marked(windows(sound), pace_s):
            answer = client.infer(MODEL, _inputs(triton, window), sequence_id=sequence, sequence_start=first, sequence_end=last)
            found.append(float(answer.as_numpy("output")[0, 0]))
    return found


def over_grpc(port: int, sound: np.ndarray, sequence: int = 2, pace_s: float = 0.0) -> list[float]:
    """The same over one gRPC stream: chunks go out while answers come in."""
    import tritonclient.grpc as triton

    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    sent = 0
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for window, first, last in _marked(windows(sound), pace_s):
            client.async_stream_infer(MODEL, _inputs(triton, window), sequence_id=sequence, sequence_start=first, sequence_end=last)
            sent += 1
        found = []
        for _ in range(sent):
            result, error = answers.get(timeout=60)
            if error is not None:
                raise error
            found.append(float(result.as_numpy("output")[0, 0]))
        client.stop_stream()
    return found


def over_events(port: int, sound: np.ndarray) -> Iterator[float]:
    """The same as one request, whose answers come as they are ready."""
    document = {"input": padded(sound)[0].tolist(), "parameters": {"hop": CHUNK}}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", f"/v2/models/{MODEL}/generate_stream", json.dumps(document), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(answer.read().decode())
    for line in answer:
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "output" in event:
                yield event["output"]
    connection.close()


def spoken(probabilities: Iterable[float], threshold: float = 0.5) -> list[tuple[float, float]]:
    """Begin and end in seconds of what is speech."""
    said: list[tuple[float, float]] = []
    begun: float | None = None
    now_s = 0.0
    for index, probability in enumerate(probabilities):
        now_s = index * CHUNK / RATE
        if probability > threshold and begun is None:
            begun = now_s
        elif probability <= threshold and begun is not None:
            said.append((begun, now_s))
            begun = None
    return said if begun is None else [*said, (begun, now_s + CHUNK / RATE)]


def _inputs(triton: Any, window: np.ndarray) -> list[Any]:
    tensor = triton.InferInput("input", list(window.shape), "FP32")
    tensor.set_data_from_numpy(window)
    return [tensor]


def _marked(parts: Iterator[np.ndarray], pace_s: float) -> Iterator[tuple[np.ndarray, bool, bool]]:
    """Each part, and whether it is the first and the last; no faster than one every ``pace_s``."""
    due_s = time.monotonic()
    part, first = next(parts), True
    while True:
        following = next(parts, None)
        time.sleep(max(0.0, due_s - time.monotonic()))
        yield part, first, following is None
        if following is None:
            return
        part, first, due_s = following, False, due_s + pace_s


def main(arguments: list[str]) -> int:
    files = [argument for argument in arguments if not argument.startswith("-")]
    sound = read_wav(files[0]) if files else voice()
    pace_s = CHUNK / RATE if "--live" in arguments else 0.0
    with tempfile.TemporaryDirectory() as folder:
        bundle = build(Path(folder))
        expected = in_process(bundle, sound)
        with serve_bundles([bundle.path], ("127.0.0.1", 0), ("127.0.0.1", 0)) as server:
            ways = {
                "gRPC stream": over_grpc(server.grpc_port or 0, sound, pace_s=pace_s),
                "HTTP": over_http(server.http_port or 0, sound, pace_s=pace_s),
                "events": list(over_events(server.http_port or 0, sound)),
            }
    for way, found in ways.items():
        same = "the same numbers as in one process" if np.array_equal(np.float32(found), np.float32(expected)) else "OTHER NUMBERS"
        print(f"{way}: {len(found)} chunks of {1e3 * CHUNK / RATE:g} ms, {same}")
    print("speech: " + ", ".join(f"{begin:.2f} to {end:.2f} s" for begin, end in spoken(expected)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
