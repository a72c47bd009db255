"""What the README says is there is there."""

import re
import subprocess

from processes import ROOT

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
    ):
        assert f"{variable}=" in done.stdout
