"""What the README says is there is there."""

import re
import subprocess

from processes import ROOT

import packshot
from packshot import Prediction, Result

VERBS = {
    "setup", "sample", "train", "export", "serve", "classify", "load", "test", "lint", "bench",
    "clean",
}  # fmt: skip
README = (ROOT / "README.md").read_text()


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_links_and_named_files_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    places = README.split("## Where things are")[1]
    for name in re.findall(r"^(\S+)/ ", places, re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_every_module_named_in_the_map_exists():
    places = README.split("## Where things are")[1]
    for package in ("packshot", "packshot/load", "trainer", "exporters"):
        listed = re.search(rf"^{package}/\s+(?:[^:\n]*: )?(.*)$", places, re.MULTILINE)[1]
        for name in listed.split(", "):
            assert (ROOT / package / f"{name}.py").exists(), name


def test_make_help_lists_the_verbs():
    done = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, check=True)
    listed = set(re.findall(r"^  make (\w+) ", done.stdout, re.MULTILINE))
    assert listed >= VERBS
    for variable in (
        "DATA",
        "RUN",
        "MODEL",
        "PORT",
        "HTTP_PORT",
        "ARCH",
        "EPOCHS",
        "IMAGE",
        "LOAD",
        "TRAIN",
    ):
        assert f"{variable}=" in done.stdout


def test_the_errors_that_the_readme_names_are_those_of_the_package():
    sentence = re.search(r"raises a `PackshotError`.*?\.$", README, re.MULTILINE)[0]
    named = re.findall(r"`([A-Z]\w+)`", sentence)
    assert len(named) == 8
    for name in named:
        assert issubclass(getattr(packshot, name), packshot.PackshotError), name


def test_the_readmes_example_prints_answers_and_faults(capsys):
    """Each of its print lines, on an answer, an unsure one and an image that cannot be used."""
    example = README.split("## Calling it")[1]
    lines = re.findall(r"^ +(print\(.*\))$", example, re.MULTILINE)
    assert len(lines) == 2
    mug = (Prediction(label="mug", index=0, probability=0.9),)
    results = (
        Result(name="a.jpg", predictions=mug),
        Result(name="b.jpg", predictions=mug, abstained=True),
        Result(name="c.jpg", error="it is empty"),
    )
    for line in lines:
        for result in results:
            exec(line, {"result": result})
    assert capsys.readouterr().out.splitlines() == [
        "a.jpg mug 90.0%", "b.jpg mug 90.0%", "c.jpg it is empty",
        "a.jpg mug", "b.jpg ask a person", "c.jpg it is empty",
    ]  # fmt: skip


def dry_run(*arguments: str) -> str:
    """What make would do, without the installation of what it needs."""
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    commands = done.stdout.rpartition(".venv/.installed\n")[2]
    return "\n".join(" ".join(line.split()) for line in commands.splitlines())


def test_make_hands_options_on_quoted_and_in_one_line():
    assert dry_run("train", "DATA=my photos", "RUN=r", "ARCH=a b", "TRAIN=--resume --seed 7") == (
        '.venv/bin/python -m trainer --data "my photos" --run "r" --arch "a b" --resume --seed 7'
    )
    told = dry_run("export", "MODEL=a b", "ENGINES=fp32, int8", "TARGETS=8.6, 8.9")
    assert '--run "runs/a b"' in told
    assert told.endswith('--model "a b" --engines "fp32, int8" --targets "8.6, 8.9"')
    assert '--model "a b"' in dry_run("serve", "MODEL=a b")


def test_make_load_sends_what_was_named_or_draws_where_there_is_no_sample():
    assert dry_run("load", "DATA=nowhere").endswith('"nowhere"')
    assert "nowhere" not in dry_run("load", "SAMPLE=nowhere")
