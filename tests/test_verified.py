"""Opening a version: what is checked beside the engine, and what is left behind when it fails."""

import msgspec
import numpy as np
import pytest
from test_gpu_engines import replace_opener
from tiny import change_manifest, overwrite, reference, tiny_bundle

from packshot.bundle import GOLDEN, open_bundle
from packshot.errors import AnswersDiffer, DamagedFile
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.open import EngineChoice
from serving.supply import supply_in
from serving.verified import open_version

FP32 = EngineChoice(order=("fp32",), lanes=1, max_batch=2)


@pytest.fixture
def closed(monkeypatch):
    """The engines that were closed."""
    names: list[str] = []

    class Watched(OnnxRuntimeEngine):
        def close(self) -> None:
            names.append(self.name)
            super().close()

    replace_opener(
        monkeypatch, "fp32", lambda wanted: Watched(wanted.checked(), name="fp32", lanes=1)
    )
    return names


def with_golden(folder, **changes):
    """Other golden samples, which the manifest vouches for."""
    golden = msgspec.structs.replace(open_bundle(folder).golden(), **changes)
    overwrite(folder / GOLDEN, golden.to_bytes())
    return change_manifest(folder)


def test_an_engine_is_closed_again_where_pixels_differ(tmp_path, closed):
    """Its answers to the golden pixels are right: only decoding shows that they are others."""
    folder = tiny_bundle(tmp_path)
    pixels = open_bundle(folder).golden().pixels ^ np.uint8(32)
    with_golden(folder, pixels=pixels, logits=reference(pixels))
    with pytest.raises(AnswersDiffer, match="grey levels"):
        open_version(supply_in(tmp_path), folder, FP32)
    assert closed == ["fp32"]


def test_an_engine_is_closed_again_where_a_sample_is_no_image(tmp_path, closed):
    folder = tiny_bundle(tmp_path)
    golden = open_bundle(folder).golden()
    with_golden(folder, encoded=(b"no image", *golden.encoded[1:]))
    with pytest.raises(Exception, match="image"):
        open_version(supply_in(tmp_path), folder, FP32)
    assert closed == ["fp32"]


def test_a_damaged_engine_is_told_whatever_the_pixels(tmp_path, closed):
    folder = tiny_bundle(tmp_path)
    with_golden(folder, pixels=open_bundle(folder).golden().pixels ^ np.uint8(32))
    overwrite(folder / "model.onnx", b"damaged")
    with pytest.raises(DamagedFile, match=r"model\.onnx"):
        open_version(supply_in(tmp_path), folder, FP32)
    assert closed == []
