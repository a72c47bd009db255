"""Images built and run by Podman, on a Debian machine without a Docker engine or systemd.

The base image is put together from Debian's packages: no image registry is asked.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import ROOT, TIMEOUT, until

BASE = "localhost/python:3.11-slim-bookworm"
BASE_FILE = ROOT / ".cache" / "python-3.11-slim-bookworm.tar"
BASE_PACKAGES = "ca-certificates,python3-minimal,python3-venv,libpython3-stdlib"
WITHOUT = ("doc", "man", "locale")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
NEEDED = ("podman", "runc", "mmdebstrap")
# Limits above this shell's own may not be set, and crun wants one kind of control groups only.
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
# What deploy/kubernetes and deploy/compose.yaml ask for too.
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def missing_tools() -> list[str]:
    return [tool for tool in NEEDED if shutil.which(tool) is None]


class Podman:
    """With a storage and a configuration of its own, so that nobody else's images are touched."""

    def __init__(self, folder: Path) -> None:
        configuration = folder / "containers.conf"
        configuration.write_text(CONFIGURATION)
        self._folder = folder
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self._command = (
            "podman", "--root", str(folder / "root"), "--runroot", str(folder / "run"),
            "--storage-driver", "overlay",
        )  # fmt: skip

    def __call__(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        """Runs `podman ...`; its output is told where it fails."""
        done = self.attempt(*arguments, **options)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def attempt(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        # Where a container ran out of memory, its monitor leaves a file in the folder it began in.
        return subprocess.run(
            [*self._command, *map(str, arguments)], cwd=self._folder,
            env=self._environment, text=True, capture_output=True, timeout=600, **options,
        )  # fmt: skip

    def build(self, target: str, version: str) -> str:
        """The name of the image that deploy/Dockerfile makes."""
        image = f"localhost/packshot-{target}:{version}"
        # An index behind a company's proxy may be signed by an authority that the base has not.
        trusted = ("--volume", f"{AUTHORITIES}:{AUTHORITIES}:ro")
        self(
            "build", "--isolation", "chroot", "--network", "host", "--format", "docker", *trusted,
            "--file", ROOT / "deploy" / "Dockerfile", "--target", target,
            "--build-arg", f"BASE={BASE}", "--build-arg", f"VERSION={version}",
            "--tag", image, ROOT,
        )  # fmt: skip
        return image

    def inspected(self, name: str) -> dict:
        return json.loads(self("inspect", name).stdout)[0]

    @contextmanager
    def running(self, image: str, *options: object, arguments: tuple = ()) -> Iterator["Container"]:
        name = self(
            "run", "--detach", "--no-healthcheck", *options, image, *arguments
        ).stdout.strip()
        try:
            yield Container(self, name)
        finally:
            self("rm", "--force", "--time", "0", name)


class Container:
    def __init__(self, podman: Podman, name: str) -> None:
        self._podman, self._name = podman, name

    @property
    def log(self) -> str:
        done = self._podman("logs", self._name)
        return done.stdout + done.stderr

    def execute(self, *command: object) -> subprocess.CompletedProcess[str]:
        return self._podman.attempt("exec", self._name, *command)

    def wait_until_ready(self, *probe: object) -> None:
        until(
            lambda: self.execute("packshot", "probe", *probe).returncode == 0 or self._has_ended()
        )
        assert not self._has_ended(), self.log

    def stop(self) -> int:
        """By SIGTERM; the exit status."""
        self._podman("stop", "--time", TIMEOUT, self._name)
        return self.exit_status

    @property
    def exit_status(self) -> int:
        return int(self._podman("wait", self._name).stdout)

    def _has_ended(self) -> bool:
        return self._podman.inspected(self._name)["State"]["Status"] == "exited"


def base_image(podman: Podman) -> str:
    """Python on Debian, in the storage; put together once, 30 seconds, and kept as a file."""
    if not BASE_FILE.exists():
        _make_base(BASE_FILE)
    podman("import", BASE_FILE, BASE)
    return BASE


def _make_base(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    sources = Path("/etc/apt/sources.list.d/debian.sources").read_text().splitlines()
    mirror = next(line.split()[1] for line in sources if line.startswith("URIs:"))
    left_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in WITHOUT]
    unfinished = file.with_suffix(".unfinished.tar")
    subprocess.run(
        [
            "mmdebstrap", "--quiet", "--variant=apt", f"--include={BASE_PACKAGES}", *left_out,
            '--aptopt=Apt::Install-Recommends "false"', "bookworm", unfinished, mirror,
        ],
        check=True, timeout=600,
    )  # fmt: skip
    unfinished.replace(file)
