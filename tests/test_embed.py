"""Embeddings, by RPC and by command: of the tiny network, the mean colour of an image."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, TIMEOUT
from tiny import PURE, jpeg

from packshot import Client
from packshot.errors import InvalidInput, NotFound
from packshot.image import ImageSpec, load_pixels

FILES = [jpeg(colour) for colour in PURE.values()]
MEANS = np.array([load_pixels(file, ImageSpec()).mean(axis=(0, 1)) for file in FILES])


def packshot(server, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "packshot.cli", "embed", "--target", server.target]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT, input=stdin, capture_output=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(FILES[number % 3])
    return tmp_path


def test_the_embedding_is_what_the_network_gives(server):
    with Client(server.target, images_per_request=2) as client:
        found = client.embed(FILES)
        assert client.embed([]) == []
    assert {one.embedding.dtype for one in found} == {np.dtype(np.float32)}
    assert np.allclose([one.embedding for one in found], MEANS, atol=0.01)
    assert {(one.model, one.version, one.engine) for one in found} == {("colours", 1, "fp32")}
    assert [one.name for one in found] == ["image 1", "image 2", "image 3"]


def test_normalised_embeddings_have_length_1_and_the_same_direction(server):
    black = np.zeros((224, 224, 3), np.uint8)
    with Client(server.target) as client:
        *found, nothing = (one.embedding for one in client.embed([*FILES, black], normalize=True))
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert np.allclose(found, MEANS / np.linalg.norm(MEANS, axis=1, keepdims=True), atol=1e-4)
    assert nothing.tolist() == [0, 0, 0], "it has no direction"


def test_bad_images_get_errors_of_their_own(server, tmp_path):
    with Client(server.target) as client:
        bad, missing, good = client.embed([b"text", tmp_path / "missing.jpg", FILES[0]])
    assert (bad.reason, missing.reason, good.reason) == ("not_an_image", "unreadable", None)
    assert (bad.embedding.size, missing.embedding.size, good.embedding.size) == (0, 0, 3)


def test_what_the_server_refuses_is_raised(server):
    with Client(server.target, model="shoes") as client, pytest.raises(NotFound, match="shoes"):
        client.embed(FILES)
    with Client(server.target) as client, pytest.raises(InvalidInput, match="expected uint8 RGB"):
        client.embed(np.zeros((2, 2)))


def test_embed_writes_arrays_of_what_could_be_used(server, folder, tmp_path):
    (folder / "5.jpg").write_bytes(b"text")
    out = tmp_path / "out" / "vectors.npz"
    done = packshot(server, folder, "--out", out, "--normalize")
    assert done.returncode == 1
    assert b"5.jpg  ERROR not_an_image" in done.stderr
    with np.load(out, allow_pickle=False) as arrays:
        names, rows = arrays["names"].tolist(), arrays["embeddings"]
    assert names == [str(folder / f"{number}.jpg") for number in range(9) if number != 5]
    assert (rows.shape, rows.dtype) == ((8, 3), np.float32)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)


def test_embed_writes_an_object_a_line(server, tmp_path):
    out = tmp_path / "vectors.jsonl"
    done = packshot(server, "-", "--out", out, stdin=FILES[1])
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(line) for line in out.read_text().splitlines())
    assert (record["name"], record["model"], record["error"]) == ("-", "colours", None)
    assert np.allclose(record["embedding"], MEANS[1], atol=0.01)


def test_embed_tells_names_that_are_not_utf8_and_keeps_them_in_arrays(server, tmp_path):
    (tmp_path / "in").mkdir()
    name = os.fsdecode(os.fsencode(tmp_path) + b"/in/caf\xe9.jpg")
    Path(name).write_bytes(FILES[0])
    for out in ("vectors.jsonl", "vectors.npz"):
        done = packshot(server, tmp_path / "in", "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "vectors.jsonl").read_text())
    assert record["name"] == f"{tmp_path}/in/caf\\xe9.jpg"
    with np.load(tmp_path / "vectors.npz", allow_pickle=False) as arrays:
        assert arrays["names"].tolist() == [name]


def test_embed_says_which_files_it_can_write(server, folder, tmp_path):
    done = packshot(server, folder, "--out", tmp_path / "vectors.txt")
    assert done.returncode == 2
    assert b"end its name with .npz or .jsonl" in done.stderr
    done = packshot(server, folder, "--out", folder / "0.jpg" / "vectors.npz")
    assert done.returncode == 2
    assert b"cannot be written" in done.stderr
