"""Weights to start from: published, from a file, from a run; and what is refused, with a remedy."""

import hashlib
import sys

import msgspec
import pytest
import torch
import torchvision
from processes import program
from safetensors.torch import save_file
from test_data import options
from torch import nn

from packshot.errors import DamagedFile, InvalidInput, NotFound
from packshot.image import ImageSpec
from packshot.intervals import share_interval
from trainer.__main__ import main
from trainer.architectures import ARCHITECTURES, Published, architecture
from trainer.checkpoint import Checkpoint, load_split_of, read_record, save_checkpoint
from trainer.conclude import conclude
from trainer.data import Split
from trainer.evaluate import Evaluation
from trainer.metrics import read_metrics
from trainer.model import PixelNetwork, Weights, new_network
from trainer.prepare import check
from trainer.recipes import MEDIUM, RECIPES
from trainer.report import report_html
from trainer.weights import (
    RANDOM,
    WeightsUnavailable,
    cached,
    fetch,
    fill,
    published_weights,
    read_weights,
)

RESNET18 = architecture("resnet18")
SPEC = ImageSpec()


class Small(nn.Module):
    """A network of two stages with a head like torchvision's, to write files of in no time."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn1(self.conv1(images)).mean(dim=(2, 3)))


SMALL = RESNET18._replace(build=Small, width=8, stages=(("conv1", "bn1"),), published={})


def small_filled(path) -> PixelNetwork:
    network = PixelNetwork(SMALL, 3, SPEC)
    fill(network, SMALL, read_weights("resnet18", str(path)))
    return network


def save(state, path) -> None:
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_torchvisions_fills_the_backbone_and_leaves_the_head(tmp_path, suffix):
    donor = torchvision.models.resnet18(num_classes=1000)
    path = tmp_path / f"mine{suffix}"
    save(donor.state_dict(), path)
    network = new_network("resnet18", 3, SPEC)
    start = read_weights("resnet18", str(path))
    fill(network, RESNET18, start)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert start.weights == (True, f"{path.name} sha256 {digest[:16]}")
    assert start.spec == SPEC
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, donor.state_dict()[name]), name
    assert network.head.weight.shape == (3, 512)


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_what_training_programs_wrap_around_a_state_dict_comes_off(tmp_path, wrap):
    donor = Small()
    state = {f"module.{name}": value for name, value in donor.state_dict().items()}
    save(wrap(state), tmp_path / "theirs.pth")
    assert torch.equal(
        small_filled(tmp_path / "theirs.pth").backbone.conv1.weight, donor.conv1.weight
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s.update({"conv1.weight": torch.zeros(8, 3, 5, 5)}), r"conv1\.weight is \[8, 3"),
        (lambda s: s.pop("bn1.weight"), r"the file has no bn1\.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "the file has an unknown extra"),
        (lambda s: s.update({"fc.weight": torch.zeros(9, 512)}), "head is of 512 features, not 8"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, fault):
    state = Small().state_dict()
    change(state)
    save(dict(state), tmp_path / "mine.pth")
    with pytest.raises(InvalidInput, match=rf"mine\.pth .* do not fit --arch: .*{fault}"):
        small_filled(tmp_path / "mine.pth")


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(InvalidInput, match=r"do not fit --arch: .* name the architecture"):
        fill(new_network("resnet18", 3, SPEC), RESNET18, read_weights("resnet18", str(path)))


def test_files_of_old_versions_without_batchnorm_counters_are_taken(tmp_path):
    state = {name: v for name, v in Small().state_dict().items() if "tracked" not in name}
    save(state, tmp_path / "old.safetensors")
    assert small_filled(tmp_path / "old.safetensors").backbone.bn1.num_batches_tracked == 0


class Hostile:
    """Pickled, it leaves a file behind when it is loaded."""

    def __init__(self, trace) -> None:
        self._trace = trace

    def __reduce__(self):
        return (open, (str(self._trace), "w"))


def test_code_in_a_file_is_not_run(tmp_path):
    trace = tmp_path / "was-here"
    save({"conv1.weight": Hostile(trace)}, tmp_path / "hostile.pth")
    with pytest.raises(DamagedFile, match=r"hostile\.pth cannot .* holds code is not opened"):
        read_weights("resnet18", str(tmp_path / "hostile.pth"))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors", "empty.pth"])
def test_what_is_no_file_of_weights_is_named(tmp_path, name):
    (tmp_path / name).write_text("" if name.startswith("empty") else "hello")
    with pytest.raises(DamagedFile, match=name):
        read_weights("resnet18", str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "fault"), [([1], "holds list"), ({"a": 1}, "a is of type int")]
)
def test_a_file_of_something_else_is_named(tmp_path, content, fault):
    save(content, tmp_path / "list.pth")
    with pytest.raises(DamagedFile, match=fault):
        read_weights("resnet18", str(tmp_path / "list.pth"))


def test_a_missing_file_is_answered_with_what_there_is(tmp_path):
    with pytest.raises(NotFound, match=r"no such file or run \(nor one of imagenet, imagenet-v1"):
        read_weights("resnet18", str(tmp_path / "none.pth"))
    with pytest.raises(NotFound, match=r"a folder without checkpoint\.json"):
        read_weights("resnet18", str(tmp_path))


def test_the_hash_that_the_user_names_is_checked(tmp_path):
    path = tmp_path / "mine.pth"
    save(Small().state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_weights("resnet18", str(path), sha256=digest.upper()).state is not None
    with pytest.raises(DamagedFile, match=f"has sha256 {digest}, not --weights-sha256 0000"):
        read_weights("resnet18", str(path), sha256="0" * 64)
    with pytest.raises(InvalidInput, match="'abc'; it must be 64"):
        read_weights("resnet18", str(path), sha256="abc")
    with pytest.raises(InvalidInput, match="goes with a file"):
        read_weights("resnet18", "none", sha256=digest)


def test_a_copy_of_a_published_file_is_known_by_name_and_must_be_whole(tmp_path):
    path = tmp_path / architecture("resnet50").published["v2"].file
    path.write_bytes(b"<html>please log in</html>")
    with pytest.raises(DamagedFile, match="hash in its name"):
        read_weights("resnet50", str(path))


def test_published_names(tmp_path):
    names = {name: list(kind.published) for name, kind in ARCHITECTURES.items()}
    assert names["resnet50"] == ["v1", "v2"]
    assert "V2" in published_weights("resnet50", "imagenet", "v2").title
    assert "V1" in published_weights("resnet50", "imagenet", "v1").title
    assert "V1" in published_weights("resnet50", "imagenet-v1", "v2").title
    assert "V1" in published_weights("resnet18", "imagenet", "v2").title
    for name in ("imagenet-v2", "imagenet.pth"):
        with pytest.raises(InvalidInput, match=f"'{name}'; resnet18 has imagenet-v1 "):
            published_weights("resnet18", name, "v2")


def test_the_views_are_those_that_the_authors_measured_with():
    models = torchvision.models
    for weights, arch, name in (
        (models.ResNet50_Weights.IMAGENET1K_V2, "resnet50", "v2"),
        (models.ResNet50_Weights.IMAGENET1K_V1, "resnet50", "v1"),
        (models.ViT_L_16_Weights.IMAGENET1K_V1, "vit_l_16", "v1"),
    ):
        view, spec = weights.transforms(), architecture(arch).published[name].spec
        assert view.resize_size == [spec.resize_short_side]
        assert view.crop_size == [spec.crop]
        assert (tuple(view.mean), tuple(view.std)) == (spec.mean, spec.std)
        assert view.interpolation.value == spec.interpolation
    assert architecture("resnet50").published["v2"].spec.resize_short_side == 232


def test_without_imagenet_weights_the_ways_out_are_named(hub):
    with pytest.raises(WeightsUnavailable, match=r"Three ways out") as caught:
        read_weights("resnet18", "imagenet")
    for way in (
        str(hub), "TORCH_HOME", "weights fetch --arch resnet18", "--weights PATH", "--weights none",
        "resnet18-f37072fd.pth",
    ):  # fmt: skip
        assert way in str(caught.value)
    assert list(hub.iterdir()) == []


def test_a_cached_file_with_another_hash_than_its_name_says_is_refused(hub):
    file = cached(RESNET18.published["v1"])
    assert file.parent == hub
    for content in (b"", b"<html>please log in</html>"):
        file.write_bytes(content)
        with pytest.raises(DamagedFile, match="hash in its name: delete it"):
            read_weights("resnet18", "imagenet")


def publication(folder, hash_is_right: bool = True) -> Published:
    """A file as publishers lay it out, at an address that needs no network."""
    save(Small().state_dict(), folder / "small.pth")
    digest = hashlib.sha256((folder / "small.pth").read_bytes()).hexdigest()
    name = f"small-{digest[:8] if hash_is_right else '0badc0de'}.pth"
    (folder / "small.pth").rename(folder / name)
    return Published("Small V1", (folder / name).as_uri(), ImageSpec(resize_short_side=232))


def test_fetching_checks_the_hash_and_is_done_once(tmp_path):
    (tmp_path / "site").mkdir()
    published = publication(tmp_path / "site")
    file = fetch(published, tmp_path / "mine")
    assert file.read_bytes() == (tmp_path / "site" / published.file).read_bytes()
    (tmp_path / "site" / published.file).unlink()
    assert fetch(published, tmp_path / "mine") == file


def test_a_download_with_a_wrong_hash_leaves_nothing_behind(tmp_path):
    (tmp_path / "site").mkdir()
    published = publication(tmp_path / "site", hash_is_right=False)
    with pytest.raises(RuntimeError, match="invalid hash"):
        fetch(published, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.fixture
def small(tmp_path, monkeypatch):
    """`--arch small` in the table, published at an address that needs no network."""
    (tmp_path / "site").mkdir()
    kind = SMALL._replace(published={"v1": publication(tmp_path / "site")})
    monkeypatch.setitem(ARCHITECTURES, "small", kind)
    return kind


def test_published_weights_bring_their_view_of_pictures(hub, small):
    start = read_weights("small", "imagenet")
    (file,) = hub.iterdir()
    assert start.weights.source.startswith("Small V1 sha256 ")
    assert start.weights.pretrained
    assert start.spec.resize_short_side == 232
    copy = hub / "copy" / file.name
    copy.parent.mkdir()
    file.rename(copy)
    assert read_weights("small", str(copy)).spec.resize_short_side == 232


def test_a_folder_called_imagenet_is_not_taken_for_weights(hub, small, monkeypatch):
    monkeypatch.chdir(hub)
    (hub / "imagenet").mkdir()
    assert read_weights("small", "imagenet").weights.source.startswith("Small V1")
    with pytest.raises(NotFound, match="a folder without"):
        read_weights("small", "./imagenet")


def test_the_fetch_command_says_what_is_where(hub, small, capsys):
    assert main(["weights", "fetch", "--arch", "small", "--into", str(hub / "usb")]) == 0
    (file,) = (hub / "usb").iterdir()
    said = capsys.readouterr().out
    assert f"small: Small V1 in {file}" in said
    assert hashlib.sha256(file.read_bytes()).hexdigest() in said
    assert "TORCH_HOME" in said


def test_the_fetch_command_without_a_network_says_what_to_do(hub, capsys):
    assert main(["weights", "fetch"]) == 1
    said = capsys.readouterr().err
    assert "resnet50-11ad3fa6.pth cannot be downloaded" in said
    assert str(hub) in said
    assert main(["weights", "fetch", "--arch", "resnet51"]) == 1
    assert "'resnet51'; it must be one of" in capsys.readouterr().err


def test_an_earlier_run_gives_its_backbone_and_its_view(tmp_path):
    donor = new_network("resnet18", 4, ImageSpec(resize_short_side=240))
    save_run(tmp_path / "earlier", donor, ImageSpec(resize_short_side=240))
    start = read_weights("resnet18", str(tmp_path / "earlier"))
    network = new_network("resnet18", 3, start.spec)
    fill(network, RESNET18, start)
    assert torch.equal(network.backbone.conv1.weight, donor.backbone.conv1.weight)
    assert network.head.out_features == 3
    assert start.spec.resize_short_side == 240
    assert start.weights.source.startswith("run earlier, epoch 2, weights-")
    with pytest.raises(InvalidInput, match="is a resnet18, not --arch resnet50"):
        read_weights("resnet50", str(tmp_path / "earlier"))
    (file,) = (tmp_path / "earlier").glob("weights-*")
    fill(network, RESNET18, read_weights("resnet18", str(file)))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match="does not have the hash"):
        read_weights("resnet18", str(tmp_path / "earlier"))


def save_run(run, network, image) -> None:
    run.mkdir()
    labels = ("a", "b", "c", "d")
    split = Split(
        folder="", labels=labels, train=(), val=(), test=(), damaged={}, fingerprint="f" * 64
    )
    validation = Evaluation(
        images=4, image_size=224, loss=1.0, accuracy=0.5, interval=share_interval(2, 4),
        macro_f1=0.5, classes=(), confusion=(),
    )  # fmt: skip
    record = Checkpoint(
        architecture="resnet18", labels=labels, image=image,
        recipe=MEDIUM, weights=Weights(pretrained=True, source=""), seed=0, epoch=2, step=9,
        validation=validation, data_fingerprint="f" * 64, versions={},
    )  # fmt: skip
    save_checkpoint(run, record, network, split)


def test_random_weights_are_asked_for_by_none():
    assert read_weights("resnet18", "none") == RANDOM
    network = new_network("resnet18", 3, SPEC)
    before = network.backbone.conv1.weight.clone()
    fill(network, RESNET18, RANDOM)
    assert torch.equal(network.backbone.conv1.weight, before)


def test_what_cannot_work_is_said_before_the_data_is_scanned(tmp_path, monkeypatch):
    with pytest.raises(NotFound, match=r"lost\.pth"):
        check(options(tmp_path, weights=str(tmp_path / "lost.pth")))
    with pytest.raises(InvalidInput, match="resnet18 has imagenet-v1"):
        check(options(tmp_path, weights="imagenet-v3"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidInput, match="pip install timm"):
        check(options(tmp_path, arch="seresnet50"))


def test_the_program_trains_from_a_file_and_the_report_knows_the_band(tmp_path, catalogue, capsys):
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "mine.safetensors")
    run = tmp_path / "run"
    done = program(
        "trainer", "--data", catalogue, "--run", run, "--arch", "resnet18", "--recipe", "manual",
        "--weights", tmp_path / "mine.safetensors", "--batch-size", 2, "--workers", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "recipe manual: epochs 1, batch size 2, learning rate 5e-05 (head x10)" in done.stdout
    assert "weights: mine.safetensors sha256" in done.stdout
    assert "BatchNorm's statistics stay" in done.stdout
    record = read_record(run)
    assert (record.recipe.batch_size, record.recipe.frozen_batchnorm) == (2, True)
    split = load_split_of(run, record)
    metrics = read_metrics(run)
    assert "usually gives" not in report_html(record, split, [], metrics, [])
    plants = msgspec.structs.replace(record, recipe=RECIPES["plants"])
    sentence = "the 82% to 88% that recipe plants usually gives with a ResNet-50"
    assert sentence in report_html(plants, split, [], metrics, [])
    conclude(plants, run)
    assert sentence in capsys.readouterr().out


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    from test_data import fill as draw

    folder = tmp_path_factory.mktemp("data") / "colours"
    draw(folder / "dark", 4)
    draw(folder / "bright", 4, seed=1)
    return folder
