"""The architectures, in one table: builder, published weights, widths, stages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torchvision
from torch import nn

from packshot.errors import InvalidInput
from packshot.image import ImageSpec

models = torchvision.models


class Published(NamedTuple):
    """ImageNet weights as their authors publish them. The file name ends in its hash's start."""

    title: str
    url: str
    spec: ImageSpec  # the view that their accuracy was measured on

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[1]


class Architecture(NamedTuple):
    """A classifier that ends in one linear layer of 1000 ImageNet classes.

    `head` names the module whose place the new head takes. `stages` name parameters by prefix, from
    input to output: freezing takes them from the front, and each has a learning rate of its own.
    """

    build: Callable[..., nn.Module]
    published: dict[str, Published]  # by the name that --weights imagenet-NAME gives; best last
    width: int  # of the embedding
    parameters: int  # with 1000 classes
    stages: tuple[tuple[str, ...], ...]
    good_for: str
    head: str = "fc"
    any_size: bool = True  # takes pictures of other sizes than 224 x 224
    batchnorm: bool = True


RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


def _vit_stages(blocks: int) -> tuple[tuple[str, ...], ...]:
    """The patch embedding, then the blocks in four quarters, as a ResNet has four stages."""
    names = [f"encoder.layers.encoder_layer_{i}." for i in range(blocks)]
    quarter = blocks // 4
    quarters = [tuple(names[i : i + quarter]) for i in range(0, blocks, quarter)]
    embedding = ("class_token", "conv_proj", "encoder.pos_embedding")
    return (embedding, *quarters[:-1], (*quarters[-1], "encoder.ln"))


def _torchvision(weights: Any) -> Published:
    view = weights.transforms()
    spec = ImageSpec(
        resize_short_side=view.resize_size[0],
        crop=view.crop_size[0],
        mean=tuple(view.mean),
        std=tuple(view.std),
    )
    return Published(str(weights), weights.url, spec)


def _resnet(
    build: Callable[..., nn.Module], weights: Any, width: int, parameters: int, good_for: str
) -> Architecture:
    versions = {"v1": "IMAGENET1K_V1", "v2": "IMAGENET1K_V2"}
    published = {
        short: _torchvision(weights[name])
        for short, name in versions.items()
        if name in weights.__members__
    }
    return Architecture(build, published, width, parameters, RESNET_STAGES, good_for)


def _vit(
    build: Callable[..., nn.Module],
    weights: Any,
    width: int,
    parameters: int,
    blocks: int,
    good_for: str,
) -> Architecture:
    return Architecture(
        build,
        {"v1": _torchvision(weights.IMAGENET1K_V1)},
        width,
        parameters,
        _vit_stages(blocks),
        good_for,
        head="heads",
        any_size=False,
        batchnorm=False,
    )


def build_seresnet50(**options: Any) -> nn.Module:
    """timm's SE-ResNet-50 (Hu et al., CVPR 2018). Raises InvalidInput where timm is missing."""
    try:
        import timm
    except ImportError as error:
        raise InvalidInput(
            "--arch seresnet50 needs the package timm: pip install timm, or install packshot "
            "with its extra `timm`"
        ) from error
    return timm.create_model("seresnet50", pretrained=False, **options)


# timm evaluates them with bicubic interpolation at a crop of 95 %; the image spec knows bilinear.
SERESNET50_A1 = Published(
    "timm seresnet50.a1_in1k",
    "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/"
    "seresnet50_a1_0-ffa00869.pth",
    ImageSpec(resize_short_side=235),
)

ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": _resnet(
        models.resnet18,
        models.ResNet18_Weights,
        512,
        11_689_512,
        "fewer than 1,000 images, simple tasks, speed",
    ),
    "resnet34": _resnet(
        models.resnet34, models.ResNet34_Weights, 512, 21_797_672, "between resnet18 and resnet50"
    ),
    "resnet50": _resnet(
        models.resnet50,
        models.ResNet50_Weights,
        2048,
        25_557_032,
        "the default: 1,000 to 50,000 images",
    ),
    "resnet101": _resnet(
        models.resnet101,
        models.ResNet101_Weights,
        2048,
        44_549_160,
        "more than 10,000 images, fine-grained classes, twice the training time",
    ),
    "resnet152": _resnet(
        models.resnet152,
        models.ResNet152_Weights,
        2048,
        60_192_808,
        "the deepest ResNet, where accuracy is all that counts",
    ),
    "resnext50_32x4d": _resnet(
        models.resnext50_32x4d,
        models.ResNeXt50_32X4D_Weights,
        2048,
        25_028_904,
        "group convolutions: a little more accurate than resnet50 at its size",
    ),
    "seresnet50": Architecture(
        build_seresnet50,
        {"a1": SERESNET50_A1},
        2048,
        28_088_024,
        RESNET_STAGES,
        "channel attention; needs the extra `timm`",
    ),
    "vit_b_16": _vit(
        models.vit_b_16,
        models.ViT_B_16_Weights,
        768,
        86_567_656,
        12,
        "more than 5,000 images, a GPU of 8 GB or more, accuracy before speed",
    ),
    "vit_l_16": _vit(
        models.vit_l_16,
        models.ViT_L_16_Weights,
        1024,
        304_326_632,
        24,
        "more than 50,000 images and a large GPU",
    ),
}


def architecture(name: str) -> Architecture:
    """Raises InvalidInput for a name that is not in the table."""
    if name not in ARCHITECTURES:
        raise InvalidInput(f"--arch is {name!r}; it must be one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
