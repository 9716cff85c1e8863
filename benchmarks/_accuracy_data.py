"""Labelled data for ``accuracy.py``: made here from seeds, or shipped with installed packages; nothing is downloaded but the models.

Each task gives calibration inputs, test inputs and a score. Calibration and test never share a picture, a recording or a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """One model with labelled data.

    Attributes:
        name: model and task.
        path: the ONNX file.
        shapes: ``--shape`` of each open input.
        calibration: inputs for the ranges.
        score: share of right answers over the first so many of the test set, given something that runs the model.
        tests: how many answers are judged.
        unit: what is right.
    """

    name: str
    path: Path
    shapes: dict[str, tuple[int, ...]]
    calibration: Sequence[Inputs]
    score: Callable[[Run, int], float]
    tests: int
    unit: str


# --- rendered text -------------------------------------------------------------------------------------------------------------------------

_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSerif-Bold.ttf")
_WORD_LIST = """about after again against animal answer become before behind better between bottle bridge change children circle city clear close cold
    color common country cover cross deep different distance early earth engine enough every example family father field figure final follow friend garden
    general govern great green ground happen heat heavy horse house hundred island laugh learn light listen machine measure minute moment morning mother
    mountain music nation nothing notice number object ocean often order paper pattern person picture plain planet problem produce question reach ready
    record river round science second simple sister special square stand start station street strong summer surface system table thousand travel type under
    usual valley voice watch water weather winter wonder write young"""
_WORDS = tuple(_WORD_LIST.split())


def text_lines(count: int, seed: int, width: int = 320, height: int = 48) -> tuple[list[np.ndarray], list[str]]:
    """Pictures float32 [1,3,height,width] in [-1,1] of one line of random text each, and the text."""
    import matplotlib as mpl
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(seed)
    pictures: list[np.ndarray] = []
    texts: list[str] = []
    while len(pictures) < count:
        word = str(rng.choice(_WORDS))
        text = (word.capitalize() if rng.random() < 0.3 else word) + (f"{rng.integers(10, 10_000)}" if rng.random() < 0.5 else "")
        font = ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts/ttf" / str(rng.choice(_FONTS))), int(rng.integers(26, 37)))
        left, top, right, bottom = font.getbbox(text)
        if right - left > width - 16:
            continue
        paper, ink = rng.integers(170, 256, 3), rng.integers(0, 90, 3)
        image = Image.new("RGB", (int(right - left) + 16, height), tuple(map(int, paper)))
        ImageDraw.Draw(image).text((8 - left, (height - (bottom - top)) / 2 - top), text, font=font, fill=tuple(map(int, ink)))
        pixels = np.asarray(image, np.float32)[:, :, ::-1] + rng.normal(0, 8, (height, image.width, 3))
        padded = np.zeros((3, height, width), np.float32)  # the recogniser pads with zeros after normalisation
        padded[:, :, : image.width] = ((np.clip(pixels, 0, 255) / 255 - 0.5) / 0.5).transpose(2, 0, 1)
        pictures.append(padded[np.newaxis].astype(np.float32))
        texts.append(text)
    return pictures, texts


def recogniser() -> Task:
    """PP-OCRv4 recogniser: the whole line must be right."""
    from examples.models import SHAPES, characters, fetch

    alphabet = characters()
    calibration, _ = text_lines(128, 1)
    pictures, texts = text_lines(200, 2)

    def score(run: Run, limit: int) -> float:
        return float(
            np.mean(
                [
                    _decoded(next(iter(run({"x": picture}).values()))[0], alphabet) == text
                    for picture, text in zip(pictures[:limit], texts[:limit], strict=True)
                ]
            )
        )

    return Task(
        "ppocr-rec", fetch("ppocr-rec"), SHAPES["ppocr-rec"], [{"x": each} for each in calibration], score, len(texts), "lines read exactly"
    )


def _decoded(scores: np.ndarray, alphabet: Sequence[str]) -> str:
    """CTC: best class of each step, repeats merged, blanks dropped; spaces at the ends, where the paper is empty, do not count."""
    best = scores.argmax(axis=-1)
    return "".join(alphabet[index] for step, index in enumerate(best) if index and (step == 0 or index != best[step - 1])).strip()


def classifier() -> Task:
    """PP-OCR angle classifier: upright or upside down."""
    from examples.models import SHAPES, fetch

    def turned(count: int, seed: int) -> tuple[list[np.ndarray], list[int]]:
        pictures, _ = text_lines(count, seed, width=192)
        labels = [index % 2 for index in range(count)]
        return [np.ascontiguousarray(p[:, :, ::-1, ::-1]) if label else p for p, label in zip(pictures, labels, strict=True)], labels

    calibration, _ = turned(128, 3)
    pictures, labels = turned(200, 4)

    def score(run: Run, limit: int) -> float:
        return float(
            np.mean(
                [
                    int(next(iter(run({"x": p}).values()))[0].argmax()) == label
                    for p, label in zip(pictures[:limit], labels[:limit], strict=True)
                ]
            )
        )

    return Task(
        "ppocr-cls", fetch("ppocr-cls"), SHAPES["ppocr-cls"], [{"x": each} for each in calibration], score, len(labels), "angles right"
    )


# --- digits --------------------------------------------------------------------------------------------------------------------------------


def digits() -> Task:
    """scikit-learn's 8x8 digits and a small CNN trained here on three quarters of them."""
    import tempfile

    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = (data.images[:, np.newaxis].astype(np.float32) / 16 - 0.5) / 0.5
    order = np.random.default_rng(5).permutation(len(pictures))
    train, test = order[: 3 * len(order) // 4], order[3 * len(order) // 4 :]
    path = Path(tempfile.gettempdir()) / "edgekit-digits.onnx"
    train_digits(pictures[train], data.target[train], path)

    def score(run: Run, limit: int) -> float:
        return float(
            np.mean([int(run({"image": pictures[i : i + 1]})["probabilities"][0].argmax()) == data.target[i] for i in test[:limit]])
        )

    calibration = [{"image": pictures[i : i + 1]} for i in train[:256]]
    return Task("digits-cnn", path, {}, calibration, score, len(test), "digits right")


def train_digits(pictures: np.ndarray, labels: np.ndarray, path: Path, epochs: int = 12) -> None:
    """Train Conv-Relu-Conv-Relu-Pool-Conv-Relu-Gemm-Softmax with Adam, seeded, and write it as ONNX."""
    import onnx
    import tensorflow as tf

    rng = np.random.default_rng(6)
    shapes = [(3, 3, 1, 16), (3, 3, 16, 32), (3, 3, 32, 32), (32 * 16, 10)]
    weights = [tf.Variable((rng.standard_normal(s) * math.sqrt(2 / np.prod(s[:-1]))).astype(np.float32)) for s in shapes]
    biases = [tf.Variable(np.zeros(s[-1], np.float32)) for s in shapes]

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def logits(x: Any) -> Any:
        x = tf.nn.relu(tf.nn.conv2d(x, weights[0], 1, "SAME") + biases[0])
        x = tf.nn.relu(tf.nn.conv2d(x, weights[1], 1, "SAME") + biases[1])
        x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        x = tf.nn.relu(tf.nn.conv2d(x, weights[2], 1, "SAME") + biases[2])
        return tf.reshape(x, (-1, 32 * 16)) @ weights[3] + biases[3]

    moments = [(np.zeros(v.shape, np.float32), np.zeros(v.shape, np.float32)) for v in (*weights, *biases)]
    nhwc, step = pictures.transpose(0, 2, 3, 1), 0
    for _ in range(epochs):
        order = rng.permutation(len(nhwc))
        for start in range(0, len(order) - 63, 64):
            chosen, step = order[start : start + 64], step + 1
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels[chosen].astype(np.int64), logits(nhwc[chosen])))
            for variable, gradient, (first, second) in zip(
                (*weights, *biases), tape.gradient(loss, [*weights, *biases]), moments, strict=True
            ):
                g = gradient.numpy()
                first[:], second[:] = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
                variable.assign_sub(2e-3 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8))
    onnx.save(_digits_model([w.numpy() for w in weights], [b.numpy() for b in biases]), path)


def _digits_model(weights: list[np.ndarray], biases: list[np.ndarray]) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    # The rows of the last product follow NHWC; ONNX flattens NCHW.
    dense = weights[3].reshape(4, 4, 32, 10).transpose(2, 0, 1, 3).reshape(512, 10)
    tensors = (
        {f"w{i}": w.transpose(3, 2, 0, 1) for i, w in enumerate(weights[:3])} | {"w3": dense} | {f"b{i}": b for i, b in enumerate(biases)}
    )
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], "conv0", **same),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "conv1", **same),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], "conv2", **same),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Flatten", ["r2"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], "dense"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- voice ---------------------------------------------------------------------------------------------------------------------------------

_RATE = 16_000
_CHUNK, _CONTEXT = 512, 64
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""First three formants of five vowels in Hz (G. Peterson, H. Barney, 1952)."""


def recording(seed: int, syllables: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Speech-like sound with pauses, float32 at 16 kHz, and per sample whether it is voiced.

    A pulse train with a wandering pitch goes through three resonators (source and filter, as in a formant synthesiser), in syllables of 0.3 to 0.5 s;
    between them is silence with faint noise.
    """
    rng = np.random.default_rng(seed)
    pieces, labels = [], []
    for _ in range(syllables):
        pause = int(rng.uniform(0.5, 0.9) * _RATE)
        pieces.append(rng.normal(0, 3e-4, pause))
        labels.append(np.zeros(pause, bool))
        for _ in range(int(rng.integers(3, 6))):
            piece = _syllable(rng, int(rng.uniform(0.15, 0.3) * _RATE))
            pieces.append(piece)
            labels.append(np.ones(len(piece), bool))
    return np.concatenate(pieces).astype(np.float32), np.concatenate(labels)


def _syllable(rng: np.random.Generator, length: int) -> np.ndarray:
    pitch = rng.uniform(100, 220) * (1 + 0.08 * np.sin(np.linspace(0, rng.uniform(2, 6), length)))
    phase = np.cumsum(pitch / _RATE)
    source = np.diff(np.floor(phase), prepend=0) + rng.normal(0, 0.01, length)
    start, end = (np.asarray(_VOWELS[int(i)], float) for i in rng.integers(0, len(_VOWELS), 2))
    sound = np.zeros(length)
    for formant in range(3):
        sound += _resonated(source, np.linspace(start[formant], end[formant], length), 60 + 40 * formant) / (formant + 1)
    envelope = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.03 * _RATE))
    return sound / (np.abs(sound).max() or 1) * envelope * rng.uniform(0.2, 0.6) + rng.normal(0, 3e-4, length)


def _resonated(source: np.ndarray, frequency: np.ndarray, bandwidth: float) -> np.ndarray:
    radius = math.exp(-math.pi * bandwidth / _RATE)
    out = np.zeros(len(source) + 2)
    turn = 2 * radius * np.cos(2 * np.pi * frequency / _RATE)
    for index, value in enumerate(source):
        out[index + 2] = value + turn[index] * out[index + 1] - radius * radius * out[index]
    return out[2:]


def _stream(run: Run, sound: np.ndarray, seen: list[Inputs] | None = None) -> np.ndarray:
    """Speech probability of each chunk, the state carried on."""
    state, context, found = np.zeros((2, 1, 128), np.float32), np.zeros(_CONTEXT, np.float32), []
    for start in range(0, len(sound) - _CHUNK + 1, _CHUNK):
        chunk = sound[start : start + _CHUNK]
        inputs = {"input": np.concatenate([context, chunk])[np.newaxis], "state": state}
        if seen is not None:
            seen.append(inputs)
        first, state = run(inputs).values()
        found.append(float(first.reshape(-1)[0]))
        context = chunk[-_CONTEXT:]
    return np.asarray(found)


def voice() -> Task:
    """Silero VAD: each chunk that is wholly voiced or wholly silent, but for 0.2 s after a change, must be told."""
    import onnxruntime

    from examples.models import fetch

    path = fetch("silero-vad")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    seen: list[Inputs] = []
    _stream(lambda inputs: dict(zip(names, session.run(names, inputs), strict=True)), recording(7)[0], seen)
    tests = [recording(seed) for seed in (8, 9)]
    truths = [_chunk_labels(labels) for _, labels in tests]

    def score(run: Run, limit: int) -> float:
        right = []
        for (sound, _), (chosen, wanted) in zip(tests, truths, strict=True):
            count = min(limit, len(wanted))  # the state is carried from chunk to chunk: only the end can be left out
            heard = _stream(run, sound[: (int(chosen[count - 1]) + 1) * _CHUNK])
            right.append((heard[chosen[:count]] > 0.5) == wanted[:count])
            limit -= count
            if not limit:
                break
        return float(np.mean(np.concatenate(right)))

    return Task(
        "silero-vad", path, {}, seen[:: max(1, len(seen) // 256)], score, sum(len(wanted) for _, wanted in truths), "chunks told right"
    )


def _chunk_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the chunks that are judged, and whether they are voiced."""
    chunks = labels[: len(labels) // _CHUNK * _CHUNK].reshape(-1, _CHUNK)
    settled = int(0.2 * _RATE / _CHUNK)
    voiced = np.asarray(chunks.all(axis=1))
    sure = voiced | ~chunks.any(axis=1)
    steady = np.array(
        [i >= settled and sure[i - settled : i + 1].all() and (voiced[i - settled : i + 1] == voiced[i]).all() for i in range(len(chunks))]
    )
    return np.nonzero(steady)[0], voiced[steady]


# --- files ---------------------------------------------------------------------------------------------------------------------------------

_TYPES = {
    ".py": "python",
    ".md": "markdown",
    ".json": "json",
    ".toml": "toml",
    ".so": "elf",
    ".png": "png",
    ".html": "html",
    ".js": "javascript",
}
_TYPES |= {
    ".css": "css",
    ".ttf": "ttf",
    ".svg": "svg",
    ".csv": "csv",
    ".pyc": "pythonbytecode",
    ".xml": "xml",
    ".yaml": "yaml",
    ".h": "c",
    ".jpg": "jpeg",
}
_TYPES |= {".c": "c", ".cpp": "cpp", ".sh": "shell", ".zip": "zip", ".gz": "gzip", ".pdf": "pdf", ".gif": "gif", ".wav": "wav"}
_PER_TYPE = 24


def files() -> Task:
    """Magika on files of the installed packages, labelled by their suffix."""
    from examples.models import SHAPES, fetch

    labels = magika_labels()
    calibration, _ = _file_set(0)
    inputs, wanted = _file_set(1)

    def score(run: Run, limit: int) -> float:
        return float(
            np.mean(
                [
                    labels[int(next(iter(run(x).values()))[0].argmax())] == label
                    for x, label in zip(inputs[:limit], wanted[:limit], strict=True)
                ]
            )
        )

    return Task("magika", fetch("magika"), SHAPES["magika"], calibration, score, len(wanted), "types right")


MAGIKA_CONFIG_SHA256 = "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db"


def magika_labels() -> list[str]:
    """Name of each class, from the package that carries the model."""
    from edgekit.bundle import cache_directory
    from edgekit.cli.demo._models import fetch_member
    from examples.models import MODELS

    place = cache_directory() / "models" / "magika-config.json"
    path = fetch_member(
        MODELS["magika"].package, "magika/models/standard_v3_3/config.min.json", MAGIKA_CONFIG_SHA256, place, "labels of 'magika'"
    )
    return list(json.loads(path.read_text("utf-8"))["target_labels_space"])


def _file_set(part: int) -> tuple[list[Inputs], list[str]]:
    """At most `_PER_TYPE` files of each type; odd ones are for calibration, even ones for the test."""
    root = Path(np.__file__).resolve().parent.parent
    by_type: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        kind = _TYPES.get(path.suffix)
        if kind is not None and path.is_file() and path.stat().st_size >= 256:
            by_type.setdefault(kind, []).append(path)
    inputs, labels = [], []
    for kind, paths in sorted(by_type.items()):
        chosen = paths[part::2]
        for index in range(min(_PER_TYPE, len(chosen))):
            inputs.append({"bytes": magika_features(chosen[index * len(chosen) // min(_PER_TYPE, len(chosen))].read_bytes())})
            labels.append(kind)
    return inputs, labels


def magika_features(data: bytes) -> np.ndarray:
    """1,024 bytes of the begin and of the end, white space stripped within the first and last 4,096; 256 pads (magika 1.0, standard_v3_3)."""
    head = data[:4096].lstrip()[:1024]
    tail = data[-4096:].rstrip()[-1024:]
    features = np.full(2048, 256, np.int32)
    features[: len(head)] = np.frombuffer(head, np.uint8)
    features[2048 - len(tail) :] = np.frombuffer(tail, np.uint8)
    return features[np.newaxis]


TASKS: dict[str, Callable[[], Task]] = {
    "ppocr-rec": recogniser,
    "ppocr-cls": classifier,
    "digits-cnn": digits,
    "silero-vad": voice,
    "magika": files,
}
