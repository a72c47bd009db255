"""What was tested is what an image holds."""

import re

import pytest
from processes import ROOT

LOCKS = sorted((ROOT / "deploy" / "locks").glob("*.lock"))
PIN = re.compile(r"^([a-z0-9._-]+)==([^ ]+)", re.MULTILINE)


def pins(text: str) -> dict[str, set[str]]:
    """Versions by package: of several, each is for other versions of Python."""
    found: dict[str, set[str]] = {}
    for name, version in PIN.findall(text):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_the_locks_of_images_agree_with_the_one_of_the_tests(lock):
    tested = pins((ROOT / "requirements.lock").read_text())
    held = pins(lock.read_text())
    assert held
    for name in held.keys() & tested.keys():
        assert held[name] <= tested[name], name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_everything_is_pinned_by_hash_and_names_no_index(lock):
    text = lock.read_text()
    assert "://" not in text
    for pinned in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in pinned, pinned.splitlines()[0]


def test_the_image_of_the_server_is_small():
    held = pins((ROOT / "deploy" / "locks" / "serve-cpu.lock").read_text())
    assert not {"torch", "onnx", "onnxscript", "scikit-learn"} & held.keys()
