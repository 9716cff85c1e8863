"""Silero VAD over a live stream: whatever way the chunks take, the numbers are those of the model run offline."""

from __future__ import annotations

import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks._accuracy_data import recording
from edgekit.protocol import Server
from edgekit.runtime import serve_bundles
from examples import live_voice
from examples.recordings import voice

Sounds = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def sounds() -> Sounds:
    """A real voice, and another sound that is like speech."""
    return {"voice": voice(), "made": recording(9, syllables=3)[0]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundle = live_voice.build(tmp_path_factory.mktemp("voice"))
    with serve_bundles([bundle.path], ("127.0.0.1", 0), ("127.0.0.1", 0)) as running:
        yield running


@pytest.fixture(scope="module")
def offline(real_model: Callable[[str], Path], sounds: Sounds) -> dict[str, np.ndarray]:
    """Speech probabilities through ONNX Runtime and the original file, the state passed by hand."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(real_model("silero-vad")), options, providers=["CPUExecutionProvider"])
    found = {}
    for name, sound in sounds.items():
        state, probabilities = np.zeros((2, 1, 128), np.float32), []
        whole = np.concatenate([np.zeros(64, np.float32), sound])
        for start in range(0, len(sound) - 511, 512):
            answer, state = session.run(["output", "stateN"], {"input": whole[np.newaxis, start : start + 576], "state": state})
            probabilities.append(answer[0, 0])
        found[name] = np.array(probabilities)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", ["grpc", "http", "events"])
def test_it_answers_what_the_model_answers_offline(server: Server, offline: dict[str, np.ndarray], sounds: Sounds, way: str) -> None:
    sound = sounds["voice"]
    if way == "events":
        found = list(live_voice.over_events(server.http_port or 0, sound))
    elif way == "http":
        found = live_voice.over_http(server.http_port or 0, sound)
    else:
        found = live_voice.over_grpc(server.grpc_port or 0, sound)
    np.testing.assert_array_equal(np.float32(found), offline["voice"])


@pytest.mark.slow
def test_a_real_voice_is_told_from_silence(offline: dict[str, np.ndarray], sounds: Sounds) -> None:
    found, chunk_s = offline["voice"], live_voice.CHUNK / live_voice.RATE
    assert len(sounds["voice"]) == 150_000
    loud = np.array([np.sqrt(np.mean(window[:, live_voice.CONTEXT :] ** 2)) for window in live_voice.windows(sounds["voice"])])
    silent = np.r_[loud[: int(0.5 / chunk_s)], loud[int(8.2 / chunk_s) :]]
    assert silent.max() < 0.003 < 10 * silent.max() < loud.max()  # what is not said is at most a tenth as loud
    assert max(found[: int(0.5 / chunk_s)].max(), found[int(8.2 / chunk_s) :].max()) < 0.1
    assert found[int(1.0 / chunk_s) : int(3.9 / chunk_s)].min() > 0.5
    said = [(begin, end) for begin, end in live_voice.spoken(found) if end - begin > 0.5]
    assert len(said) == 3
    np.testing.assert_allclose(said, [(0.74, 4.03), (4.38, 6.37), (6.56, 7.78)], atol=0.07)


@pytest.mark.slow
def test_calls_at_the_same_time_do_not_mix(server: Server, offline: dict[str, np.ndarray], sounds: Sounds) -> None:
    found: dict[tuple[str, str], list[float]] = {}

    def call(way: str, name: str, sequence: int) -> None:
        port = server.http_port if way == "http" else server.grpc_port
        over = live_voice.over_http if way == "http" else live_voice.over_grpc
        found[way, name] = over(port or 0, sounds[name], sequence)

    calls = [("http", "voice", 11), ("http", "made", 12), ("grpc", "voice", 13), ("grpc", "made", 14)]
    threads = [threading.Thread(target=call, args=one) for one in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for way, name, _ in calls:
        np.testing.assert_array_equal(np.float32(found[way, name]), offline[name])


def test_what_is_spoken() -> None:
    assert live_voice.spoken([0.1, 0.9, 0.8, 0.2, 0.9]) == [(0.032, 0.096), (0.128, 0.16)]
    assert live_voice.spoken([]) == []


def test_windows_overlap_by_the_context() -> None:
    sound = np.arange(1300, dtype=np.float32) + 1
    first, second = live_voice.windows(sound)
    assert first.shape == (1, 576)
    assert (first[0, :64] == 0).all()
    np.testing.assert_array_equal(second[0, :64], first[0, 512:])
    assert second[0, -1] == 1024


def test_a_recording_is_read(tmp_path: Path) -> None:
    samples = np.array([0, 16384, -32768], "<i2")
    for rate in (16_000, 8_000):
        with wave.open(str(tmp_path / f"{rate}.wav"), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    assert live_voice.read_wav(str(tmp_path / "16000.wav")).tolist() == [0.0, 0.5, -1.0]
    with pytest.raises(SystemExit, match="8000 Hz; expected 1, 16, 16000"):
        live_voice.read_wav(str(tmp_path / "8000.wav"))
