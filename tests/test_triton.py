"""The model repository for Triton; its config was parsed with Triton's ModelConfig when written."""

import hashlib
import subprocess
import sys

import msgspec
import numpy as np
import onnxruntime
import pytest
from fake_gpu import VERSION, sidecar
from processes import ROOT, environment
from tiny import LABELS, PURE, add_openvino, colour_network, jpeg, tiny_bundle

from packshot import __version__
from packshot.bundle import open_bundle
from packshot.errors import EngineRefused, InvalidInput, NotFound
from packshot.image import ImageSpec, load_pixels
from packshot.plan import PlanSidecar, Profile
from packshot.triton import export_triton

PLAN = b"not really a plan"
KEY = "trt-fp16.sm90"
IMAGE = (
    '{"decoder":"pillow","orientation":"exif","colour":"RGB","alpha_over":[255,255,255],'
    '"frame":"first","fit":"crop","padding":[255,255,255],"resize_short_side":256,"crop":224,"interpolation":"bilinear",'
    '"antialias":true,"resizer":"pillow","draft_short_side":512,"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]}'
)
QUOTED_IMAGE = IMAGE.replace('"', '\\"')
CONFIG = f"""\
# The input is decoded and resized by the client; logits are neither divided by the
# temperature nor put through a softmax: see README.md beside this file.
name: "colours"
backend: "onnxruntime"
max_batch_size: 32
input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ 224, 224, 3 ] }} ]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }},
  {{ name: "embedding" data_type: TYPE_FP32 dims: [ 3 ] }}
]
dynamic_batching {{ }}
parameters {{ key: "packshot.version" value {{ string_value: "{__version__}" }} }}
parameters {{ key: "packshot.engine" value {{ string_value: "fp32" }} }}
parameters {{ key: "packshot.temperature" value {{ string_value: "1.0" }} }}
parameters {{ key: "packshot.min_confidence" value {{ string_value: "0.25" }} }}
parameters {{ key: "packshot.image" value {{ string_value: "{QUOTED_IMAGE}" }} }}
"""


def plan(**changes: object) -> tuple[bytes, PlanSidecar]:
    return PLAN, sidecar(sha256=hashlib.sha256(PLAN).hexdigest(), **changes)


def test_the_repository_holds_config_labels_and_network(tmp_path):
    folder = tiny_bundle(tmp_path / "models", min_confidence=0.25)
    written = export_triton(open_bundle(folder), tmp_path / "triton")
    assert written == tmp_path / "triton" / "colours"
    files = sorted(str(path.relative_to(written)) for path in written.rglob("*"))
    assert files == ["1", "1/model.onnx", "README.md", "config.pbtxt", "labels.txt"]
    assert (written / "config.pbtxt").read_text() == CONFIG
    assert (written / "labels.txt").read_text().split() == list(LABELS)
    assert (written / "1" / "model.onnx").read_bytes() == colour_network()


def test_whoever_follows_the_readme_gets_the_answers(tmp_path):
    folder = tiny_bundle(tmp_path / "models")
    written = export_triton(open_bundle(folder), tmp_path / "triton")
    spec_text = (written / "README.md").read_text().split("```json\n")[1].split("```")[0]
    spec = msgspec.json.decode(spec_text, type=ImageSpec)
    network = onnxruntime.InferenceSession(
        written / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (images,) = network.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == (
        "images",
        "tensor(uint8)",
        [224, 224, 3],
    )
    outputs = {one.name: (one.type, one.shape[1:]) for one in network.get_outputs()}
    assert outputs == {"logits": ("tensor(float)", [3]), "embedding": ("tensor(float)", [3])}
    for number, colour in enumerate(PURE.values()):
        pixels = load_pixels(jpeg(colour), spec)[np.newaxis]
        assert network.run(["logits"], {"images": pixels})[0].argmax() == number


def test_a_plan_is_declared_with_what_it_needs(tmp_path):
    profiles = (
        Profile(min_batch=1, opt_batch=1, max_batch=1),
        Profile(min_batch=1, opt_batch=8, max_batch=16),
        Profile(min_batch=8, opt_batch=32, max_batch=64),
    )
    folder = tiny_bundle(tmp_path / "models", plans={KEY: plan(profiles=profiles)})
    written = export_triton(open_bundle(folder), tmp_path, KEY)
    assert (written / "1" / "model.plan").read_bytes() == PLAN
    lines = (written / "config.pbtxt").read_text().splitlines()
    assert 'platform: "tensorrt_plan"' in lines
    assert "max_batch_size: 16" in lines, "the largest that also takes a single image"
    assert 'instance_group [ { count: 1 kind: KIND_GPU profile: [ "1" ] } ]' in lines
    readme = (written / "README.md").read_text()
    assert VERSION in readme
    assert "9.0" in readme


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"flavour": "tensorrt_rtx"}, "wrong_flavour"),
        ({"profiles": (Profile(min_batch=4, opt_batch=8, max_batch=8),)}, "wrong_shape"),
    ],
)
def test_a_plan_that_triton_cannot_use_is_refused(tmp_path, changes, reason):
    folder = tiny_bundle(tmp_path / "models", plans={KEY: plan(**changes)})
    with pytest.raises(EngineRefused, match=r"model\.trt-fp16\.sm90\.plan") as refused:
        export_triton(open_bundle(folder), tmp_path / "triton", KEY)
    assert refused.value.reason == reason
    assert not (tmp_path / "triton").exists()


def test_an_engine_of_openvino_is_not_what_triton_would_run(tmp_path):
    bundle = open_bundle(add_openvino(tiny_bundle(tmp_path, int8=colour_network())))
    for engine, instead in (("openvino-int8", "int8"), ("openvino-bf16", "fp32")):
        with pytest.raises(InvalidInput, match=f"engine of the same file, {instead}$"):
            export_triton(bundle, tmp_path / "triton", engine)
    assert not (tmp_path / "triton").exists()


def test_nothing_is_overwritten_and_nothing_invented(tmp_path):
    bundle = open_bundle(tiny_bundle(tmp_path / "models"))
    with pytest.raises(NotFound, match="no engine 'int8'; there is fp32"):
        export_triton(bundle, tmp_path, "int8")
    export_triton(bundle, tmp_path)
    with pytest.raises(InvalidInput, match="colours exists already: remove it"):
        export_triton(bundle, tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path):
    tiny_bundle(tmp_path / "models")
    script = (
        "import resource, sys\n"
        "from packshot.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "sys.exit(main())\n"
    )
    command = ["models", "export", "colours", "--format", "triton", "--models", tmp_path / "models"]
    done = subprocess.run(
        [sys.executable, "-c", script, *command, "--out", tmp_path / "triton"],
        cwd=ROOT, env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "packshot: [Errno 27] File too large" in done.stderr
    assert list((tmp_path / "triton").iterdir()) == []
