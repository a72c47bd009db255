"""Features: the frozen backbone's embeddings of images as the server sees them, computed once.

DIR/features-<key>/<hash>.safetensors   some images' embeddings, and the sha256 of each image

The folder is keyed by weights and image spec, and a file is named by its content: other splits,
seeds, heads and class weights find the same images again. Files are written one after another while
images go through the network, so that a pass that was interrupted is taken up where it was.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load, save
from tqdm import tqdm

from packshot.atomic import write_whole
from packshot.errors import DamagedFile, InvalidInput
from packshot.image import ImageSpec
from trainer.batches import served_views
from trainer.cache import DISK_FULL, REMEDY
from trainer.data import Example, Split
from trainer.model import PixelNetwork

FORMAT = 1
BATCH = 64  # images in the network together, while as many are decoded
PER_FILE = 128  # images: what an interrupted pass has to do again at most

Row = npt.NDArray[np.float32]
"""One image's embedding, float32 [width]."""


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """Embeddings float32 [N, width] of N images, with their labels int64 [N]."""

    rows: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]

    def parted(self, first: int) -> tuple["Features", "Features"]:
        """Those of the first images, and the others; nothing is copied."""
        return (
            Features(rows=self.rows[:first], truth=self.truth[:first]),
            Features(rows=self.rows[first:], truth=self.truth[first:]),
        )


def features_of(
    network: PixelNetwork,
    split: Split,
    examples: Sequence[Example],
    spec: ImageSpec,
    cache: Path | None = None,
) -> Features:
    """Embeddings of the examples, on the device that the network is on, in evaluation mode.

    `cache`: a folder to find them in, and to keep them in. Raises InvalidInput for an embedding
    that is not finite or a disk that is full, DamagedFile for an image that has changed since it
    was verified or a file of the cache that is not what it was.
    """
    rows = np.empty((len(examples), network.embedding_width), np.float32)
    places: defaultdict[str, list[int]] = defaultdict(list)  # copies share a sha256
    for place, example in enumerate(examples):
        places[example.sha256].append(place)
    missing = {example.sha256: example for example in examples}
    folder = cache / f"features-{key(network, spec)}" if cache else None
    for sha256, row in read_features(folder) if folder else ():
        if missing.pop(sha256, None):
            rows[places[sha256]] = row
    unwritten: dict[str, Row] = {}
    for sha256, row in _computed(network, split, list(missing.values()), spec, len(places)):
        rows[places[sha256]] = unwritten[sha256] = row
        if len(unwritten) == PER_FILE:
            _write_features(folder, unwritten)
            unwritten.clear()
    _write_features(folder, unwritten)
    return Features(rows=rows, truth=np.array([one.label for one in examples], np.int64))


def key(network: PixelNetwork, spec: ImageSpec) -> str:
    """Of what embeddings are made of: the backbone's weights and the view of images."""
    digest = hashlib.sha256(msgspec.json.encode((FORMAT, spec)))
    for name, value in network.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def read_features(folder: Path) -> Iterator[tuple[str, Row]]:
    """Images' sha256 and their embeddings, from every file. Raises DamagedFile."""
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] != path.stem:
            raise DamagedFile(f"{path} is not what was written: remove it, and train again")
        found = load(content)
        digests = (digest.tobytes().hex() for digest in found["sha256"])
        yield from zip(digests, found["features"], strict=True)


def _write_features(folder: Path | None, rows: Mapping[str, Row]) -> None:
    if folder is None or not rows:
        return
    digests = np.frombuffer(bytes.fromhex("".join(rows)), np.uint8).reshape(len(rows), 32)
    content = save({"sha256": digests, "features": np.stack(list(rows.values()))})
    name = hashlib.sha256(content).hexdigest()[:16]
    try:
        write_whole(folder / f"{name}.safetensors", content)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise InvalidInput(f"--cache {folder.parent}: {error.strerror}; {REMEDY}") from error


def _computed(
    network: PixelNetwork, split: Split, examples: Sequence[Example], spec: ImageSpec, total: int
) -> Iterator[tuple[str, Row]]:
    """Images' sha256 and their embeddings; a batch is decoded while another is in the network.

    Pixels of two batches are held, however many images there are.
    """
    batches = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
    bar = tqdm(
        total=total, initial=total - len(examples), desc="features", unit="image", disable=None
    )
    network.eval()
    with bar, ThreadPoolExecutor(1) as ahead, torch.inference_mode():
        coming = ahead.submit(served_views, split, batches[0], spec) if batches else None
        for number, batch in enumerate(batches, start=1):
            assert coming is not None
            views = torch.from_numpy(coming.result())
            if number < len(batches):
                coming = ahead.submit(served_views, split, batches[number], spec)
            _, embeddings = network(views.to(network.mean.device))
            rows = embeddings.float().cpu().numpy()
            _check_finite(rows, batch)
            yield from zip((example.sha256 for example in batch), rows, strict=True)
            bar.update(len(batch))


def _check_finite(rows: npt.NDArray[np.float32], examples: Sequence[Example]) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if finite.all():
        return
    example = examples[int(np.argmin(finite))]
    raise InvalidInput(
        f"the features of {example.file} are not finite: --weights has values that are not, or too "
        "large; name another file"
    )
