"""PyTorch modules and torch.export archives; runs where torch and onnxscript are installed."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("onnxscript")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

from edgekit.converters import build
from edgekit.converters._source import load_source
from edgekit.converters.sources import _torch_export
from edgekit.converters.sources._runnable import open_session
from edgekit.errors import BuildError, ModelError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]


class Net(torch.nn.Module):
    """Dropout and batch statistics make the mode matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, image):
        features = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        return {"scores": self.head(self.drop(features)), "features": features}


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))


def test_module_gives_pytorchs_numbers_under_its_own_names(image):
    module = Net().train()
    source = load_source(module, example_inputs=image, dynamic_shapes={"image": {0: "batch"}})
    assert module.training
    assert (source.format, str(source.path)) == ("torch", "Net")
    assert [(spec.name, spec.describe()) for spec in source.signature.inputs] == [("image", "float32[batch,3,8,8]")]
    assert [spec.name for spec in source.signature.outputs] == ["scores", "features"]
    other = torch.cat([image, image * 2])
    with torch.no_grad():
        wanted = module.eval()(other)
    got = open_session(source.model).run(None, {"image": other.numpy()})
    for want, have in zip(wanted.values(), got, strict=True):
        np.testing.assert_allclose(have, want.numpy(), rtol=1e-4, atol=1e-5)


def test_module_builds_to_a_bundle(tmp_path, image):
    bundle = build(Net(), device="generic-x86", example_inputs=[image.numpy()], output=tmp_path / "b.edgekit", isolate=False)
    assert (bundle.manifest.name, bundle.manifest.source.format) == ("Net", "torch")
    assert bundle.manifest.verification.verified == "host"


def test_archive(tmp_path, image):
    program = torch.export.export(Net().eval(), (image,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    source = load_source(path)
    assert source.format == "torch-export"
    assert source.signature.inputs[0].shape[1:] == (3, 8, 8)
    assert isinstance(source.signature.inputs[0].shape[0], str)
    assert [spec.name for spec in source.signature.outputs] == ["scores", "features"]


def test_a_damaged_archive_is_one_line(tmp_path, image):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), (image,)), path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"torch.ops.aten', b'"torch.ops.none'))
    with pytest.raises(ModelError, match=r"net\.pt2") as caught:
        load_source(path)
    assert "\n" not in str(caught.value)


def test_module_without_example_inputs():
    with pytest.raises(UsageError, match="module Net: no example inputs"):
        load_source(Net())


def test_example_inputs_that_do_not_fit(image):
    with pytest.raises(ModelError, match="does not run on its example inputs"):
        load_source(Net(), example_inputs=image[:, :2])


def test_what_torch_cannot_export_is_one_line():
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(BuildError, match=r"torch\.onnx\.export failed") as caught:
        load_source(Branch(), example_inputs=torch.ones(2))
    assert "\n" not in str(caught.value)


def test_an_export_with_other_numbers_is_an_error(image, monkeypatch):
    """The exported graph is changed behind the exporter's back; the comparison must see it."""
    export = torch.onnx.export

    def wrong(*args, **kwargs):
        program = export(*args, **kwargs)
        for node in program.model.graph:
            if node.op_type == "Relu":
                node.op_type = "Softplus"
        return program

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(BuildError, match="what torch wrote is another model"):
        load_source(Net(), example_inputs=image)


def test_more_weights_than_protobuf_takes(image, monkeypatch):
    monkeypatch.setattr(_torch_export, "LARGE_BYTES", 100)
    with pytest.raises(ModelError, match="external_data=True"):
        load_source(Net(), example_inputs=image)


def test_nothing_imports_torch_before_it_is_needed():
    code = "import sys, edgekit.converters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
