"""Bulk classification by Ray Data: the server's answers, each once, whatever is killed."""

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kubernetes_validate
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from processes import ROOT, TIMEOUT, environment, until
from tiny import PURE, encoded, jpeg

from deploy.ray.classify import main, parser
from deploy.ray.images import Reader, Unreadable, images_in
from deploy.ray.job import CODE, Machines, Options, Source, machines_for
from deploy.ray.output import Output
from deploy.ray.worker import SCHEMA, Classifier, Task
from packshot import Client, __version__
from packshot.errors import DamagedFile, InvalidInput
from packshot.image import ImageLimits
from serving.engines.open import EngineChoice
from serving.ranking import Ranking

BAD = {"text": b"no picture", "empty": b"", "half": jpeg(PURE["red"])[:-300]}
ODD = {  # what a server may say in the place of HTTP, and what is told of it
    "garbage": b"no HTTP\r\n\r\n",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500),
    "nothing": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
}
REASONS = {"text": "not_an_image", "empty": "empty", "half": "damaged", "gone": "unreadable"}
FILES, ROWS = 4, 32
RUN_TIMEOUT = 600  # Ray starts a dozen processes, which takes minutes where cores are busy


def picture(number: int) -> bytes:
    colour = np.random.default_rng(number).integers(0, 256, 3)
    return encoded(Image.new("RGB", (64, 48), tuple(colour.tolist())), "PNG")


@pytest.fixture(scope="module")
def surroundings():
    """Ray's sockets need a short path; its token is for this test alone."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield environment(
        RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_worker_niceness="0",
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(surroundings, tmp_path_factory):
    """A Ray cluster that runs elsewhere: it has the libraries, not this checkout."""
    folder = surroundings["RAY_TMPDIR"]
    ray = subprocess.Popen(
        [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--port=0",
         "--num-cpus=2", "--include-dashboard=false",
         f"--temp-dir={folder}"],
        cwd=tmp_path_factory.mktemp("elsewhere"), env=surroundings, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = Path(folder) / "ray_current_cluster"
        until(lambda: ray.poll() is not None or (address.exists() and address.read_text().strip()))
        yield address.read_text().strip()
    finally:
        os.killpg(ray.pid, signal.SIGKILL)  # its own end takes half a minute
        ray.wait(TIMEOUT)


@contextmanager
def started(surroundings, *arguments):
    """The job as its user starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.ray.classify", *map(str, arguments)],
        cwd=ROOT, env=surroundings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait(TIMEOUT)
        process.stdout.close()


def classify(surroundings, *arguments) -> tuple[int, str]:
    with started(surroundings, *arguments) as process:
        told, _ = process.communicate(timeout=RUN_TIMEOUT)
        return process.returncode, told


class Shop(ThreadingHTTPServer):
    """Pictures over HTTP; counts who asked for what, and may do something first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.asked = Counter()
        self.before = lambda number, port: None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.strip("/")
        with self.server.lock:
            self.server.asked[name] += 1
            number = self.server.asked.total()
        self.server.before(number, self.client_address[1])  # others are answered meanwhile
        try:
            if name == "gone":
                return self.send_error(404)
            if name in ODD:
                return self.wfile.write(ODD[name])
            content = BAD[name] if name in BAD else picture(int(name))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # who asked was killed
            self.close_connection = True

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def shop():
    with Shop() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(TIMEOUT)


def owner(port: int, other: int) -> int:
    """The process that has this port of the loopback as its end of a connection to the other.

    The port alone may be an end of several, to different places.
    """
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = (f":{port:04X}", f":{other:04X}")
    (inode,) = [
        line[9] for line in lines if line[1].endswith(ends[0]) and line[2].endswith(ends[1])
    ]
    for fds in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(fds.readlink()) == f"socket:[{inode}]":
                return int(fds.parts[2])
        except OSError:
            continue
    raise AssertionError(f"nobody has port {port}")


def answers(folder: Path) -> dict[str, dict]:
    """By id, each once."""
    rows = pyarrow.dataset.dataset(folder, format="parquet").to_table().to_pylist()
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def write_catalogue(folder: Path, url: str) -> set[str]:
    """Parquet files of ids and URLs."""
    folder.mkdir()
    names = [str(number) for number in range(FILES * ROWS - len(REASONS))] + list(REASONS)
    for number in range(FILES):
        some = names[number::FILES]
        table = pa.table({"sku": [f"sku-{n}" for n in some], "url": [f"{url}/{n}" for n in some]})
        pq.write_table(table, folder / f"{number}.parquet")
    return {f"sku-{name}" for name in names}


def test_a_killed_job_is_resumed_and_a_killed_worker_does_its_work_again(
    store, tmp_path, shop, cluster, surroundings, capsys
):
    ids = write_catalogue(tmp_path / "catalogue", shop.url)
    out = tmp_path / "out"
    job = (
        "--models", store, "--model", "colours", "--input", tmp_path / "catalogue",
        "--image-column", "url", "--id-column", "sku", "--output", out, "--engines", "fp32",
        "--address", cluster, "--top-k", 3, "--http-timeout-seconds", RUN_TIMEOUT,
    )  # fmt: skip

    with started(surroundings, *job) as process:

        def kill_the_job(number, _) -> None:
            if number == len(ids) // 2:
                until(lambda: process.poll() is not None or list(out.glob("part-*")))
                process.kill()

        shop.before = kill_the_job
        process.wait(RUN_TIMEOUT)
        assert process.returncode == -signal.SIGKILL, process.stdout.read()
    assert not (out / "_SUCCESS").exists()
    first = set(answers(out))
    assert 0 < len(first) < len(ids)

    assert main([str(part) for part in job]) == 2
    told = capsys.readouterr().err
    assert f"{out} is there already: name another folder, or give --resume" in told

    shop.asked.clear()
    killed = []

    def kill_a_worker(number, port) -> None:
        if number == 10:
            killed.append(owner(port, shop.server_address[1]))
            os.kill(killed[0], signal.SIGKILL)

    shop.before = kill_a_worker
    code, told = classify(surroundings, *job, "--resume")
    assert code == 0, told
    assert (
        f"{out}: {len(ids)} images: 0 abstained, 4 cannot be used (damaged 1, empty 1, "
        f"not_an_image 1, unreadable 1); engine fp32 {len(ids)}"
    ) in told
    assert len(killed) == 1
    found = answers(out)
    assert set(found) == ids
    assert {name for name in shop.asked if f"sku-{name}" in first} == set()
    assert max(shop.asked.values()) > 1  # what the killed worker had begun
    assert {name: found[f"sku-{name}"]["reason"] for name in REASONS} == REASONS
    assert Counter(row["reason"] for row in found.values())[None] == len(ids) - len(REASONS)
    assert (out / "_SUCCESS").exists()
    assert not list(out.glob(".*"))


@pytest.fixture
def served(server):
    """What the server answers to files, by name: labels, probabilities, and whether it abstains."""

    def ask(files):
        with Client(server.target, timeout_seconds=TIMEOUT) as client:
            results = client.classify(list(files.values()), top_k=2, min_confidence=0.6)
        return dict(zip(files, results, strict=True))

    return ask


def assert_same(found, served) -> None:
    assert set(found) == set(served)
    for name, one in served.items():
        row = found[name]
        assert row["labels"] == ([p.label for p in one.predictions] or None)
        shares = [p.probability for p in one.predictions]
        assert row["probabilities"] == (pytest.approx(shares, abs=1e-6) if shares else None)
        assert (row["reason"], row["error"]) == (one.reason, one.error)
        assert row["engine"] == "fp32"
        if one.error is None:
            assert (row["label"], row["abstained"]) == (one.label, one.abstained)
            assert row["probability"] == row["probabilities"][0]


def test_answers_are_the_servers(served, store, tmp_path, cluster, surroundings):
    files = {str(number): picture(number) for number in range(40)} | BAD
    table = pa.table({"number": list(files), "file": pa.array(list(files.values()), pa.binary())})
    pq.write_table(table, tmp_path / "catalogue.parquet")
    code, told = classify(
        surroundings, "--models", store, "--model", "colours", "--actors", 2, "--address", cluster,
        "--input", tmp_path / "catalogue.parquet", "--image-column", "file",
        "--id-column", "number", "--output", tmp_path / "out", "--top-k", 2,
        "--min-confidence", 0.6,
    )  # fmt: skip
    assert code == 0, told
    assert_same(answers(tmp_path / "out"), served(files))


def test_a_folder_is_read_at_any_depth(served, store, tmp_path):
    photos = tmp_path / "photos"
    files = {f"{number % 3}/deep/{number}.PNG": picture(number) for number in range(20)}
    files |= {f"{name}.jpg": content for name, content in BAD.items()}
    for name, content in {**files, "notes.txt": b"", ".hidden": b""}.items():
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(content)
    worker = Classifier(
        Task(
            version_folder=store / "colours" / "1",
            choice=EngineChoice(order=("fp32",), lanes=1, max_batch=8),
            limits=ImageLimits(),
            ranking=Ranking(top_k=2, min_confidence=0.6),
            decoders=1,
            folder=str(photos),
        )
    )
    rows = worker(images_in(str(photos))).to_pylist()
    assert_same({row["id"]: row for row in rows}, served(files))


def test_a_picture_of_too_many_bytes_is_not_read_to_its_end(tmp_path):
    (tmp_path / "large.jpg").write_bytes(bytes(1000))
    assert len(Reader(str(tmp_path), max_bytes=10).read("large.jpg")) == 11
    assert len(Reader(None, max_bytes=10).read((tmp_path / "large.jpg").as_uri())) == 11
    with pytest.raises(Unreadable, match=r"gone\.jpg cannot be read"):
        Reader(str(tmp_path), max_bytes=10).read("gone.jpg")
    with pytest.raises(Unreadable, match="cannot be read"):
        Reader(None, max_bytes=10).read("odd://a/b.jpg")


def test_no_url_and_no_reply_ends_the_job(shop):
    reader = Reader(None, max_bytes=5000, http_timeout_seconds=TIMEOUT)
    for url, why in {
        "http://h/a b.jpg": "URL can't contain control characters",
        "http://host:abc/a.jpg": "nonnumeric port",
        f"{shop.url}/garbage": "no HTTP",
        f"{shop.url}/cut": "the connection broke off",
        f"{shop.url}/nothing": "the connection broke off",
        f"{shop.url}/chunk": "IncompleteRead",
        f"{shop.url}/gone": "HTTP Error 404",
    }.items():
        with pytest.raises(Unreadable) as refused:
            reader.read(url)
        assert str(refused.value).startswith(f"{url} cannot be read: ")
        assert why in str(refused.value)
    assert reader.read(f"{shop.url}/1") == picture(1)
    assert len(Reader(None, max_bytes=10).read(f"{shop.url}/cut")) == 11  # refused as too large


def test_an_engine_that_no_worker_has_is_told_in_a_line(store, tmp_path, surroundings):
    """On a cluster that the job starts itself. Nothing is left in the way of the next attempt."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "red.jpg").write_bytes(jpeg(PURE["red"]))
    code, told = classify(
        surroundings, "--models", store, "--model", "colours", "--require", "tensorrt",
        "--input", tmp_path / "photos", "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 2, told
    last = told.splitlines()[-1]
    assert last.startswith("packshot: ")
    assert "tensorrt" in last
    assert "Traceback" not in told
    assert "--resume" not in told
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refusal(store, tmp_path, capsys):
    """A function from the changed options of a job to why it is refused, before Ray starts."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "red.jpg").write_bytes(jpeg((230, 20, 20)))
    usual = {"models": store, "model": "colours", "input": photos, "output": tmp_path / "out"}

    def told(*flags: str, **changed: object) -> str:
        options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in {**usual, **changed}.items()]  # fmt: skip  # noqa: E501
        assert main([*(text for option in options for text in option), *flags]) == 2
        return capsys.readouterr().err

    return told


def test_what_makes_no_sense_is_refused_with_the_remedy(refusal, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"no image in {empty}; of Parquet files, name the column" in refusal(input=empty)
    assert f"{tmp_path / 'nowhere'} is no folder of images" in refusal(input=tmp_path / "nowhere")
    assert "no model 'cups' in" in refusal(model="cups")
    assert "has nothing to resume" in refusal("--resume").replace("so there is", "has")
    pq.write_table(pa.table({"file": [b"1"], "url": ["a"]}), tmp_path / "a.parquet")
    table = {"input": tmp_path / "a.parquet"}
    assert "has no column 'image'; it has ['file', 'url']" in refusal(**table, image_column="image")
    assert "which names no image: name a column" in refusal(**table, image_column="file")
    assert "min_confidence is 2.0; it must be from 0 to 1" in refusal(min_confidence=2)
    assert "no-such-kind://a cannot be opened" in refusal(output="no-such-kind://a")
    again = {"input": tmp_path / "again.parquet", "image_column": "url"}
    pq.write_table(pa.table({"url": ["a", "b", "a", "a", "b", "c"]}), again["input"])
    assert f"2 ids occur more than once in {again['input']}: name a column" in refusal(**again)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_had_is_told_in_a_line(refusal, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    assert f"no Ray cluster at {nobody}: [Errno 111]" in refusal(address=nobody)
    assert "no Ray cluster at nonsense: Invalid address" in refusal(address="nonsense")
    told = refusal(output=tmp_path / ("out" * 100))
    assert told.startswith("packshot: ")
    assert "File name too long" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value", "span"),
    [
        ("--max-batch", "0", "from 1 to 256"),
        ("--max-image-bytes", "-1", "from 1 to 1073741824"),
        ("--max-image-pixels", "0", "from 1 to 89000000"),
        ("--actors", "-1", "0 or more"),
        ("--cpus-per-actor", "-1", "0 or more"),
        ("--top-k", "-1", "0 or more"),
        ("--version", "0", "1 or more"),
        ("--http-timeout-seconds", "nan", "from 0.001 to 86400.0"),
    ],
)
def test_numbers_have_a_range(flag, value, span, capsys):
    usual = ["--models", "m", "--model", "a", "--input", "i", "--output", "o"]
    with pytest.raises(SystemExit) as ended:
        main([*usual, f"{flag}={value}"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"argument {flag}: {value} is out of range; it must be {span}" in told


def options(**changed) -> Options:
    return Options(
        models=Path("models"), model="a", source=Source(name="photos"), output="out",
        ranking=Ranking(), limits=ImageLimits(), engines=("cuda", "int8"), max_batch=8, **changed,
    )  # fmt: skip


def test_workers_fit_on_the_machines():
    small, large = {"CPU": 6.0, "memory": 1e9}, {"CPU": 16.0}
    one_gpu, four_gpus = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 4.0}
    mixed = [small, large, one_gpu, four_gpus]
    assert machines_for(options(), mixed) == Machines(actors=5, cpus=4, gpus=1)
    assert machines_for(options(cpus_per_actor=8), mixed) == Machines(actors=3, cpus=8, gpus=1)
    assert machines_for(options(), [small, large]) == Machines(actors=22, cpus=1, gpus=0)
    assert machines_for(options(cpus_per_actor=4), [small, large]) == Machines(
        actors=5, cpus=4, gpus=0
    )
    on_cpus = options(require="int8", actors=3)
    assert machines_for(on_cpus, mixed) == Machines(actors=3, cpus=1, gpus=0)
    assert machines_for(options(), [{"GPU": 2.0}]) == Machines(actors=2, cpus=0, gpus=1)
    assert machines_for(options(), [{}]) == Machines(actors=1, cpus=1, gpus=0)
    with pytest.raises(InvalidInput, match="64, and the largest machine has 16 cores: lower it"):
        machines_for(options(cpus_per_actor=64), [small, large])
    with pytest.raises(InvalidInput, match="17, and the largest machine with a GPU has 16 cores"):
        machines_for(options(cpus_per_actor=17), mixed)


def test_a_folder_whose_answers_are_not_those_of_the_input_is_not_finished(tmp_path):
    output = Output(str(tmp_path))
    rows = [{"id": name, "abstained": False, "engine": "fp32"} for name in "abc"]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "part-1-000000.parquet")
    for ids, why in (
        ("abcd", "3 answers to 4 images: is it a folder that all machines"),
        ("ab", "1 answers to images that are not there: the input has changed since"),
        ("abd", "the input has changed since"),
    ):
        with pytest.raises(DamagedFile, match=why):
            output.finish(pa.chunked_array([list(ids)]))
    assert not (tmp_path / "_SUCCESS").exists()
    assert output.finish(pa.chunked_array([["c", "a"], ["b"]])).images == 3
    pq.write_table(
        pa.Table.from_pylist(rows[:2], schema=SCHEMA), tmp_path / "part-2-000000.parquet"
    )
    with pytest.raises(DamagedFile, match="2 ids that are answered more than once"):
        output.finish(pa.chunked_array([list("abc")]))


def test_a_job_is_resumed_with_what_it_was_begun_with(refusal, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "_job.json").write_text(
        '{"model": "colours", "version": 1, "top_k": 3, "min_confidence": null}'
    )
    assert "was begun with top_k 3, not 5: resume it with the same" in refusal("--resume")
    (out / "_job.json").write_text("{")
    assert f"{out}/_job.json cannot be read" in refusal("--resume")


def assert_restricted(pod: dict) -> None:
    """What a namespace whose pod security is `restricted` admits."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_manifest_is_valid_and_starts_the_job():
    job = yaml.safe_load((ROOT / "deploy" / "ray" / "rayjob.yaml").read_text())
    assert job["metadata"]["namespace"] == "packshot"
    cluster = job["spec"]["rayClusterSpec"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group["template"]["spec"]["containers"][0]["envFrom"] == [
            {"secretRef": {"name": "packshot-catalogue", "optional": True}}
        ]
    submitter = job["spec"]["submitterPodTemplate"]
    assert submitter["spec"]["restartPolicy"] == "Never"
    for template in (submitter, *(group["template"] for group in groups)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **template}
        assert_restricted(pod["spec"])
        kubernetes_validate.validate(pod, "1.37", strict=True)
        assert {one["image"] for one in pod["spec"]["containers"]} == {
            f"packshot-ray:{__version__}"
        }
    python, m, module, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, m, module) == ("python", "-m", "deploy.ray.classify")
    assert parser().parse_args(arguments).input == "s3://catalogue/photos"


def test_what_the_image_needs_is_sent_to_its_builder():
    """`COPY . /app` of the README brings what .dockerignore lets through."""
    readme = (ROOT / "deploy" / "ray" / "README.md").read_text()
    assert (
        "COPY --chown=10001:10001 . /app\nRUN pip install --no-cache-dir '.[ray,serve]'" in readme
    )
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines()}
    code = {name for name in CODE if name != "deploy"} | {"deploy/__init__.py", "deploy/ray"}
    assert code | {"pyproject.toml", "README.md", "LICENSE"} <= allowed
