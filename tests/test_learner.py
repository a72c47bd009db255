"""One step of learning: parts of a batch, number formats, memory, and its state."""

import shutil
from collections import OrderedDict

import msgspec
import pytest
import torch
from test_data import options
from torch import nn

from packshot.errors import DamagedFile, InvalidInput
from packshot.image import ImageSpec
from trainer.architectures import architecture
from trainer.hardware import Hardware, hardware_for
from trainer.learner import Learner, Scalars
from trainer.model import PixelNetwork
from trainer.recipes import MEDIUM, Recipe, changed

CPU = Hardware()
EVEN = torch.ones(3)
# No warm-up nor freezing; a rate at which a step is seen.
PLAIN = changed(MEDIUM, learning_rate=1e-3, ema=False, warmup_share=0.0, frozen_batchnorm=True)


def small_backbone() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 3, stride=2),
            bn1=nn.BatchNorm2d(8),
            relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(8, 1000),
        )
    )


def network(build=small_backbone) -> PixelNetwork:
    torch.manual_seed(0)
    kind = architecture("resnet18")._replace(build=build, width=8, stages=(("conv1",), ("bn1",)))
    return PixelNetwork(kind, 3, ImageSpec())


def learner(
    recipe: Recipe = PLAIN, hardware: Hardware = CPU, weight=EVEN, build=small_backbone
) -> Learner:
    return Learner(network(build), recipe, hardware, weight=weight, steps=100)


def batch(number: int = 0, images: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=source)
    return pixels, torch.randint(0, 3, (images,), generator=source)


def after(one: Learner, steps: int = 5) -> tuple[dict[str, torch.Tensor], list[float]]:
    losses = [one.step(*batch(number), 1.0).item() for number in range(steps)]
    return one.network.state_dict(), losses


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], by: float) -> None:
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=by), name


def test_steps_lower_the_loss():
    one = learner()
    losses = [one.step(*batch(), 1.0).item() for _ in range(60)]
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("weight", [EVEN, torch.tensor([0.2, 1.0, 3.0])])
def test_a_batch_in_parts_teaches_what_a_whole_one_does(weight):
    whole, losses = after(learner(weight=weight))
    parts, again = after(learner(changed(PLAIN, accumulate=4), weight=weight))
    assert again == pytest.approx(losses, abs=1e-5)
    assert_close(parts, whole, by=1e-5)
    other, _ = after(learner(weight=weight.flip(0) * 2 + 1))
    assert not torch.allclose(other["head.weight"], whole["head.weight"], atol=1e-5)


class Greedy(nn.Sequential):
    """Runs out of memory with more images at a time than it has room for."""

    room = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"tried to allocate for {len(images)} images")
        return super().forward(images)


class Hopeless(Greedy):
    room = 0


def greedy(kind: type[Greedy]) -> nn.Module:
    return kind(OrderedDict(small_backbone().named_children()))


def test_out_of_memory_means_smaller_parts_and_the_same_weights(capsys):
    one = learner(build=lambda: greedy(Greedy))
    backed_off, _ = after(one)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "out of GPU memory: going on with 4 images at a time, in 2 parts a step",
        "out of GPU memory: going on with 2 images at a time, in 4 parts a step",
    ]
    whole, _ = after(learner())
    assert_close(backed_off, whole, by=1e-5)
    assert one.scalars().parts == 4


def test_a_network_too_large_for_one_image_is_told():
    with pytest.raises(InvalidInput, match=r"does not hold a single image.*smaller --arch"):
        learner(build=lambda: greedy(Hopeless)).step(*batch(), 1.0)


def test_parts_too_small_for_batchnorm_are_told(capsys):
    one = learner(changed(PLAIN, frozen_batchnorm=False), build=lambda: greedy(Greedy))
    one.step(*batch(), 1.0)
    assert "BatchNorm averages over so few" in capsys.readouterr().out


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_learns_about_the_same_and_keeps_weights_in_float32(half):
    exact, losses = after(learner())
    rounded, about = after(learner(hardware=Hardware(autocast=half)))
    assert {value.dtype for name, value in rounded.items() if "num_batches" not in name} == {
        torch.float32
    }
    assert about == pytest.approx(losses, abs=0.05)
    assert about != losses
    assert_close(rounded, exact, by=0.02)


def test_float16_scales_its_loss_and_skips_a_step_that_overflows():
    one = learner(hardware=Hardware(autocast=torch.float16))
    one.step(*batch(), 1.0)
    before = one.scalars().scaler["scale"]
    assert before >= 2.0**15
    weights = {name: value.clone() for name, value in one.network.state_dict().items()}
    with torch.no_grad():
        one.network.head.weight *= 1e6  # logits that float16 cannot hold
        weights["head.weight"] = one.network.head.weight.clone()
    one.step(*batch(), 1.0)
    assert one.scalars().scaler["scale"] == before / 2
    assert_close(one.network.state_dict(), weights, by=0.0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_compiled_steps_are_the_same_steps():
    plain, losses = after(learner())
    compiled, again = after(learner(hardware=Hardware(compiled=True)))
    assert again == pytest.approx(losses, abs=1e-4)
    assert_close(compiled, plain, by=1e-4)
    assert set(compiled) == set(plain)


RESUMED = changed(PLAIN, ema=True, mixup=0.4, cutmix=0.4, frozen_batchnorm=False)


def seeded_steps(one: Learner, first: int, last: int) -> None:
    for number in range(first, last):
        torch.manual_seed(number)
        one.step(*batch(number), 1.0)


@pytest.mark.parametrize("half", [None, torch.float16])
def test_a_learner_goes_on_from_its_state_bit_for_bit(half):
    straight = learner(RESUMED, Hardware(autocast=half))
    seeded_steps(straight, 0, 10)
    stopped = learner(RESUMED, Hardware(autocast=half))
    seeded_steps(stopped, 0, 4)
    tensors = {name: value.clone().contiguous() for name, value in stopped.tensors().items()}
    another = learner(RESUMED, Hardware(autocast=half))
    another.restore(
        tensors, msgspec.json.decode(msgspec.json.encode(stopped.scalars()), type=Scalars)
    )
    seeded_steps(another, 4, 10)
    expected = straight.tensors()
    for name, value in another.tensors().items():
        assert torch.equal(value, expected[name]), name
    assert another.scalars() == straight.scalars()


def test_the_state_of_another_network_is_refused():
    tensors = learner().tensors()
    del tensors["network.head.weight"]
    with pytest.raises(DamagedFile, match="does not fit the network"):
        learner().restore(tensors, learner().scalars())


@pytest.mark.gpu
def test_a_gpu_learns_in_half_precision_and_goes_on_bit_for_bit(tmp_path):
    hardware = hardware_for(options(tmp_path, deterministic=True), {})
    try:
        assert hardware.gpu
        assert hardware.autocast in (torch.bfloat16, torch.float16)
        straight, stopped, another = (learner(RESUMED, hardware) for _ in range(3))
        seeded_steps(straight, 0, 10)
        seeded_steps(stopped, 0, 4)
        tensors = {name: value.cpu().contiguous() for name, value in stopped.tensors().items()}
        another.restore(tensors, stopped.scalars())
        seeded_steps(another, 4, 10)
        expected = straight.tensors()
        for name, value in another.tensors().items():
            assert torch.equal(value.cpu(), expected[name].cpu()), name
    finally:
        torch.use_deterministic_algorithms(False)
