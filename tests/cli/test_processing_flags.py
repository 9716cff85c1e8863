"""The flags of pre- and post-processing as a script uses them."""

import numpy as np
import pytest

from edgekit.bundle import Bundle


def test_build_with_pictures_and_classes(edgekit, tiny_conv, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    path = tmp_path / "conv.edgekit"
    built = edgekit(
        *("build", tiny_conv, "--device", "generic-x86", "-o", path, "--json"),
        *("--image-input", "image=uint8,HWC,RGB2BGR,from=20x24,resize=16x16,scale=1/255,mean=0.5,std=0.25"),
        *("--classes", names, "--top-k", "2", "--class-scores", "scores=softmax"),
    )
    assert built.status == 0, built.err
    assert set(built.json["metrics"]) == {"features", "scores", "classes"}
    signature = edgekit("inspect", path, "--json").json["signature"]
    assert signature["images"][0] | {"name": "image", "resize": [16, 16]} == signature["images"][0]
    assert signature["postprocess"]["kind"] == "top_k"
    lines = edgekit("inspect", path).out
    assert "pictures image: uint8 HWC, colours=RGB2BGR, given=(20, 24), resize=(16, 16)" in lines
    assert "classes: 5 (a, b, c, d, e)" in lines
    assert edgekit("verify", path, "--json").json["ok"] is True
    np.save(tmp_path / "picture.npy", np.zeros((1, 20, 24, 3), np.uint8))
    ran = edgekit("run", path, "--input", f"image={tmp_path / 'picture.npy'}", "--json")
    assert ran.json["outputs"]["classes"] | {"dtype": "int64", "shape": [1, 2]} == ran.json["outputs"]["classes"]
    assert Bundle.open(path).labels() == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image-input", "image=uint8"], "no HWC or CHW"),
        (["--image-input", "image=uint8,HWC,resize=8x8"], "its steps give 8x8 pixels"),
        (["--top-k", "0"], "--top-k 0"),
        (["--top-k", "9", "--class-scores", "scores=none"], "has 5 classes"),
        (["--nms", "iou=0.5"], "no score"),
        (["--nms", "iou=0.5,score=0.1,max=5,boxes=features"], "a float tensor of rank 3"),
    ],
)
def test_a_wrong_flag_is_one_line_and_nothing_written(edgekit, tiny_conv, tmp_path, flags, message):
    path = tmp_path / "conv.edgekit"
    done = edgekit("build", tiny_conv, "--device", "generic-x86", "-o", path, *flags)
    assert done.status == 2
    assert message in done.error
    assert not path.exists()
