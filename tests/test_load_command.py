"""What `packshot load` is told and tells, but for the figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from load_programs import LOAD, RED, load_command
from processes import ROOT, TIMEOUT

from packshot.cli import main
from packshot.client import MAX_MESSAGE_BYTES
from packshot.errors import InvalidInput
from packshot.load import command
from packshot.load.observed import read_metrics
from packshot.load.results import Results, read_results


def test_requests_that_cannot_be_sent_are_refused_before_they_are_made(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    options = ("--target", server.target, "--images-per-request", 2_000_000_000)
    done = load_command(*options, tmp_path / "red.jpg")
    sizes = f"{2_000_000_000 * len(RED)} bytes; a request has at most {MAX_MESSAGE_BYTES}: send"
    assert (done.returncode, sizes in done.stderr) == (2, True)


def test_an_image_that_has_no_pixels_is_named(server, tmp_path):
    (tmp_path / "a.jpg").write_bytes(RED)
    (tmp_path / "cut.jpg").write_bytes(RED[: len(RED) // 2])
    done = load_command("--target", server.target, "--pixels", tmp_path)
    assert done.returncode == 2
    assert f"packshot: {tmp_path}/cut.jpg: the JPEG image cannot be decoded" in done.stderr


@pytest.mark.parametrize("load", [("--concurrency", 2), ("--sweep",)])
def test_results_are_written_though_nobody_reads_what_is_printed(
    server, tmp_path, load, interruptible
):
    (tmp_path / "red.jpg").write_bytes(RED)
    loading = interruptible(
        server, *load, "--seconds", 0.3, "--warmup", 0, "--out", tmp_path, tmp_path / "red.jpg"
    )
    loading.stdout.close()
    loading.stderr.close()
    assert loading.wait(TIMEOUT) == 1
    results = read_results(tmp_path)
    assert results.runs[-1].answered > 0
    assert results.found == (results.sweep.found() if results.sweep else None)
    assert (tmp_path / "load.html").exists()


def test_without_a_standard_error_nothing_else_is_printed_in_its_place(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    told = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *LOAD, "--target", server.target, "--seconds", "0.3",
         "--json", "--out", tmp_path, tmp_path / "red.jpg"],
        cwd=ROOT, stdout=subprocess.PIPE, timeout=TIMEOUT, check=True,
    ).stdout  # fmt: skip
    assert msgspec.json.decode(told, type=Results) == read_results(tmp_path)


def test_the_name_of_a_source_may_be_no_utf_8(server, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn"))
    folder.mkdir()
    (folder / "red.jpg").write_bytes(RED)
    done = load_command(
        folder, "--target", server.target, "--seconds", 0.3, "--warmup", 0, "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path).images.source == f"{tmp_path}/gr\\xfcn"


def test_a_folder_that_takes_no_files_is_told_before_the_load(server, tmp_path):
    before = server.metric("packshot_images_total")
    (tmp_path / "file").touch()
    for folder in (Path("/proc"), tmp_path / "file"):
        done = load_command("--target", server.target, "--out", folder)
        assert (done.returncode, f"{folder}: results cannot be written" in done.stderr) == (2, True)
    assert server.metric("packshot_images_total") == before


def test_a_folder_that_takes_no_results_any_more_is_named_and_they_are_printed(server, tmp_path):
    """As one on a disk that is full by then; here the place of a file is taken by a folder."""
    (tmp_path / "red.jpg").write_bytes(RED)
    (tmp_path / "load.json").mkdir()
    done = load_command(
        tmp_path / "red.jpg", "--target", server.target, "--seconds", 0.3, "--warmup", 0,
        "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"packshot: {tmp_path}: results cannot be written: Is a directory" in done.stderr
    assert "images/s" in done.stdout


def test_a_large_folder_is_sampled_evenly(tmp_path, monkeypatch, capsys):
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(bytes([number]))
    monkeypatch.setattr(command, "MOST_IMAGES", 4)
    chosen = [(str(tmp_path / f"{n:02}.jpg"), bytes([n])) for n in (0, 3, 6, 9)]
    assert command._images([str(tmp_path)]) == chosen
    assert "4 of 12 images are sent in turn" in capsys.readouterr().err


def test_a_wrong_address_and_a_wrong_metrics_page_are_told_at_once(server):
    done = load_command("--target", "127.0.0.1:1")
    assert (done.returncode, "no answer from 127.0.0.1:1" in done.stderr) == (2, True)
    wrong = f"{server.http_url}/livez"
    done = load_command("--target", server.target, "--metrics-url", wrong)
    assert (done.returncode, f"{wrong} has no metrics of a packshot server" in done.stderr) == (
        2,
        True,
    )


def test_what_other_ports_and_pages_say_is_not_printed_as_it_is(server, tmp_path):
    (tmp_path / "page").write_bytes(b"{\x1b[2J} 1\n")
    for url, told in (
        (f"http://{server.target}/metrics", "gives no answer in HTTP/1: check --metrics-url"),
        ((tmp_path / "page").as_uri(), "has no metrics of a packshot server: "),
    ):
        with pytest.raises(InvalidInput) as refused:
            read_metrics(url)
        assert told in str(refused.value)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--sweep", "--rate", 5), "leave --rate out"),
        (("--seconds", 0), "--seconds is 0.0; it must be above 0"),
        (("--warmup", -1), "--warmup is -1.0; it must be 0 or more"),
        (("--rate", "nan"), "--rate is nan"),
        (("--rate", 1e300), "--rate is 1e+300; it must be 100000 or less: send from more machines"),
        (("--rate", "inf"), "--rate is inf; it must be above 0, and finite"),
        (("--warmup", "inf"), "--warmup is inf"),
        (("--timeout", "inf"), "--timeout is inf"),
        (("--slo-ms", 0), "--slo-ms is 0.0"),
        (("--images-per-request", 0), "--images-per-request is 0"),
        (("--rate", 5, "--concurrency", 4), "leave --concurrency out, or --rate"),
        (("--arrivals", "constant"), "give --rate or --sweep"),
        (("--seed", 0), "give --rate or --sweep"),
        (("--api", "open-inference"), "give --model"),
        (("--concurrency", 3000), "--concurrency is 3000; it must be 2048 or less"),
        (("nothing-there/*.jpg",), "no such file"),
    ],
)
def test_plans_without_sense_are_refused(server, capsys, options, told):
    assert main(["load", "--target", server.target, *map(str, options)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("a", "b", "--sweep"), "--compare sends nothing"),
        (("a", "b", "c.jpg", "--slo-ms", 5), "leave images, --slo-ms out"),
        (("a", "b", "--rate", 0), "leave --rate out"),
        (("a", "b", "--target", "a:1", "--tls"), "leave --target, --tls out"),
        (
            (
                "a",
                "b",
                "--pixels",
                "--images-per-request",
                2,
                "--seconds",
                3,
                "--warmup",
                0,
                "--processes",
                3,
                "--api",
                "open-inference",
            ),
            "leave --seconds, --warmup, --processes, --images-per-request, --pixels, --api out",
        ),
        (("nothing-there", "b"), "nothing-there: no such file"),
    ],
)
def test_a_comparison_refuses_what_it_would_ignore(capsys, options, told):
    assert main(["load", "--compare", *map(str, options)]) == 2
    assert told in capsys.readouterr().err


def test_the_other_commands_need_no_load_tester(server):
    """hdrhistogram is in an extra of its own."""
    blocked = "import sys; sys.modules['hdrh'] = None; from packshot.cli import main; "
    model, load = (
        subprocess.run(
            [sys.executable, "-c", f"{blocked}raise SystemExit(main({arguments}))"],
            cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )
        for arguments in (["model", "--target", server.target], ["load"])
    )  # fmt: skip
    assert (model.returncode, load.returncode) == (0, 2)
    assert "`pip install '.[load]'` in packshot's checkout" in load.stderr


def test_what_the_command_line_says_is_what_is_done(server, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"no image")
    not_utf8 = "caf\udce9.jpg"  # as Python reads such a name from the disk
    (tmp_path / not_utf8).write_bytes(RED)
    for name, status in ((not_utf8, 0), ("text.jpg", 1)):
        done = load_command(
            "--target", server.target, tmp_path / name, "--rate", 4, "--arrivals", "constant",
            "--seconds", 0.5, "--warmup", 0.25, "--timeout", 7, "--slo-ms", 123, "--seed", 5,
            "--processes", 1, "--json",
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        plan = json.loads(done.stdout)["run"]["plan"]
        told = {"rate": 4, "arrivals": "constant", "seconds": 0.5, "warmup_seconds": 0.25}
        told |= {"timeout_seconds": 7, "slo_ms": 123, "seed": 5, "processes": 1}
        assert told.items() <= plan.items()
