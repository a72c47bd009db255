"""The table of architectures: entries that are true, networks that train, export and quantise."""

from functools import cache, partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_network import photos
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from exporters.calibration import Histograms
from exporters.to_int8 import CPU, check_fused, prepare, quantize
from exporters.to_onnx import export_onnx
from packshot.image import ImageSpec
from trainer.architectures import ARCHITECTURES, architecture, build_seresnet50
from trainer.model import PixelNetwork, new_network
from trainer.optimizer import new_optimizer
from trainer.recipes import ARCHITECTURE_NAMES, LARGE, TINY
from trainer.weights import RANDOM, Start, fill

SPEC = ImageSpec()
IMAGES = photos(8)


def published_state(name: str) -> dict[str, torch.Tensor]:
    """Names and shapes of the weights as published: those of the builder, with 1000 classes."""
    with torch.device("meta"):
        return architecture(name).build().state_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_table_is_true(name):
    kind = architecture(name)
    state = published_state(name)
    with torch.device("meta"):
        network = new_network(name, 7, SPEC)
        original = kind.build()
    assert sum(p.numel() for p in original.parameters()) == kind.parameters
    fill(network, kind, Start(RANDOM.weights, SPEC, state))
    assert network.head.weight.shape == (7, kind.width)
    pixels = torch.zeros(2, *SPEC.shape, dtype=torch.uint8, device="meta")
    logits, embedding = network(pixels)
    assert (logits.shape, embedding.shape) == ((2, 7), (2, kind.width))
    has_batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert kind.batchnorm == has_batchnorm
    assert list(kind.published)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stages_share_out_every_parameter(name):
    with torch.device("meta"):
        network = new_network(name, 2, SPEC)
    stages = [[name for name, _ in stage] for stage in network.stage_parameters()]
    assert len(stages) == 5
    assert all(stages)
    shared = [name for stage in stages for name in stage]
    assert sorted(shared) == sorted(name for name, _ in network.backbone.named_parameters())
    network.freeze(2, batchnorm=True)
    frozen = {n for n, p in network.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {*stages[0], *stages[1]}
    groups = new_optimizer(network, LARGE).param_groups
    learnt = sum(p.numel() for group in groups for p in group["params"])
    assert learnt == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_the_quarters_of_a_vit_are_in_order():
    _, *quarters = architecture("vit_l_16").stages
    assert quarters[0][0] == "encoder.layers.encoder_layer_0."
    assert quarters[1][0] == "encoder.layers.encoder_layer_6."
    assert quarters[3] == (
        *(f"encoder.layers.encoder_layer_{i}." for i in range(18, 24)),
        "encoder.ln",
    )


def test_timms_entry_is_what_timm_says():
    from timm.models import get_pretrained_cfg

    published = architecture("seresnet50").published["a1"]
    config = get_pretrained_cfg(published.title.removeprefix("timm "))
    assert config.url.rsplit("/", 1)[1] == published.file
    assert int(224 / config.crop_pct) == published.spec.resize_short_side
    assert config.input_size == (3, 224, 224)
    assert (config.mean, config.std) == (published.spec.mean, published.spec.std)


def vit(width: int, heads: int) -> partial:
    return partial(
        VisionTransformer, image_size=224, patch_size=16, num_layers=2, num_heads=heads,
        hidden_dim=width, mlp_dim=2 * width,
    )  # fmt: skip


# The builders of the table, with as few layers as they take: what is new in each is in every layer.
FEW_LAYERS = {
    "resnet18": partial(ResNet, BasicBlock, [1, 1, 1, 1]),
    "resnet34": partial(ResNet, BasicBlock, [1, 2, 1, 1]),
    "resnet50": partial(ResNet, Bottleneck, [1, 1, 1, 1]),
    "resnet101": partial(ResNet, Bottleneck, [1, 1, 2, 1]),
    "resnet152": partial(ResNet, Bottleneck, [1, 2, 2, 1]),
    "resnext50_32x4d": partial(ResNet, Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4),
    "seresnet50": partial(
        build_seresnet50,
        layers=[1, 1, 1, 1],
        zero_init_last=False,  # or blocks start as nothing but their shortcuts
    ),
    "vit_b_16": vit(768, 12),
    "vit_l_16": vit(1024, 16),
}
# One of each kind of block. A ViT becomes INT8 too, and its answers move: that is for the gates.
CONVOLUTIONAL = ("resnet18", "resnet50", "resnext50_32x4d", "seresnet50")


def small_network(name: str, classes: int = 3) -> PixelNetwork:
    torch.manual_seed(0)
    kind = architecture(name)
    return PixelNetwork(kind._replace(build=FEW_LAYERS[name]), classes, SPEC)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Networks and the files that they were exported to, by name, each made once."""

    @cache
    def export(name: str) -> tuple[PixelNetwork, Path]:
        network = small_network(name).eval()
        path = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
        export_onnx(network, SPEC, path, {"packshot.labels": "a\nb\nc"})
        return network, path

    return export


def answers(path, images=IMAGES) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, embedding = session.run(["logits", "embedding"], {"images": images})
    return logits, embedding


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_trains_a_step(name):
    network = small_network(name)
    network.freeze(TINY.frozen_stages, batchnorm=TINY.frozen_batchnorm)
    optimizer = new_optimizer(network, TINY)
    before = {key: value.clone() for key, value in network.named_parameters()}
    network.train()
    side = 64 if architecture(name).any_size else 224
    logits, _ = network(torch.from_numpy(IMAGES[:2, :side, :side].copy()))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    optimizer.step()
    still = {key for key, value in network.named_parameters() if torch.equal(value, before[key])}
    assert still == {key for key, value in network.named_parameters() if not value.requires_grad}
    assert still


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_exports_with_the_same_answers(name, exported):
    network, path = exported(name)
    for count in (1, 3):
        with torch.inference_mode():
            expected = network(torch.from_numpy(IMAGES[:count]))
        for ours, theirs in zip(answers(path, IMAGES[:count]), expected, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_kind_of_convolutional_block_becomes_int8(name, exported, tmp_path):
    _, fp32 = exported(name)
    int8 = quantized(fp32, tmp_path)
    check_fused(fp32, int8)
    logits, _ = answers(fp32)
    rounded, _ = answers(int8)
    assert np.abs(logits - rounded).max() < 0.25 * np.ptp(logits)


def quantized(fp32: Path, folder: Path) -> Path:
    prepared, int8 = folder / "prepared.onnx", folder / "int8.onnx"
    prepare(fp32, prepared)
    calibration = Histograms(prepared, IMAGES, folder).calibration("minmax")
    quantize(prepared, int8, calibration, CPU)
    return int8


def test_the_command_line_names_the_architectures_that_there_are():
    assert tuple(ARCHITECTURES) == ARCHITECTURE_NAMES
