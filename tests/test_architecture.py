"""The import arrows of the design, and what is in the wheel."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import ROOT

PROGRAMS = {"trainer", "exporters", "serving"}
HEAVY = {
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "prometheus_client",
    "safetensors",
    "timm",
}
EXTRAS = {"packshot/load": {"prometheus_client"}}
"""Of the load tester, which the other parts of the package do not import."""

ALLOWED = {
    "packshot": {"packshot"},
    "trainer": {"packshot", "trainer"},
    "serving": {"packshot", "serving"},
    "exporters": {"packshot", "exporters", "trainer", "serving"},
}


ONLY = {
    # Its interceptor stands before every call, and ends those without a token as calls end.
    "serving.api": {"serving.app", "serving.listening"},
    # The last is its own second half, which settings calls.
    "serving.settings": {
        "serving.__main__",
        "serving.app",
        "serving.command_line",
        "serving.agreement",
    },
}
"""Of `serving`: who imports it, of those outside. All others get the values that they need."""


def extra_of(path: Path) -> set[str]:
    return EXTRAS.get(str(path.parent.relative_to(ROOT)), set())


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            if top in PROGRAMS | {"packshot"}:
                assert top in ALLOWED[package], f"{path} imports {name}"
            if package == "packshot":
                assert top not in HEAVY - extra_of(path), f"{path} imports {name}"
            if package == "serving":
                assert top not in {"torch", "torchvision", "onnx"}, f"{path} imports {name}"
            if package == "exporters" and top == "serving":
                assert name.startswith("serving.engines"), f"{path} imports {name}: engines only"


def names_in(path: Path) -> set[str]:
    """The modules of `serving` that a file imports, or imports from."""
    return {name for name in imports(path) if within(name, "serving")}


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def test_engines_know_nothing_of_the_server():
    """But how memory is given back, which imports nothing itself."""
    for path in (ROOT / "serving" / "engines").rglob("*.py"):
        for name in names_in(path):
            allowed = within(name, "serving.engines") or within(name, "serving.freed_memory")
            assert allowed, f"{path} imports {name}"
    assert not names_in(ROOT / "serving" / "freed_memory.py")


@pytest.mark.parametrize("package", sorted(ONLY))
def test_inside_the_server_only_these_import(package):
    for path in (ROOT / "serving").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if within(module, package) or module in ONLY[package]:
            continue
        for name in names_in(path):
            assert not within(name, package), f"{path} imports {name}"


def test_importing_the_server_loads_nothing_heavy():
    script = (
        "import sys, serving.app, serving.__main__\n"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_client_loads_no_server():
    script = (
        "import sys, packshot, packshot.cli; print(sorted({n.split('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert not loaded & (HEAVY | PROGRAMS)


def test_the_wheel_holds_packshot_only(tmp_path):
    script = "import os, sys\nfrom hatchling.build import build_wheel\nbuild_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"packshot"}
    assert "packshot/v1/classifier_pb2.py" in names
    assert not any("tests" in name for name in names)


def test_nothing_unpickles():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            names = imports(path)
            assert not any(name.split(".")[0] in {"pickle", "joblib", "dill"} for name in names), (
                path
            )
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert options.get("weights_only") == "True", path
