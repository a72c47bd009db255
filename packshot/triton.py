"""A bundle as a model repository of NVIDIA's Triton Inference Server, for those who run that.

<out>/<name>/config.pbtxt            inputs, outputs, batching, as Triton's ModelConfig
             labels.txt              for Triton's classification extension
             README.md               what packshot's server did and a client of Triton must do
             <version>/model.onnx    or model.plan
"""

import shutil
from pathlib import Path

import msgspec

from packshot import __version__
from packshot.atomic import whole_folder
from packshot.bundle import EMBEDDING, INPUT, LABELS, LOGITS, PLAN, Bundle, Manifest
from packshot.errors import EngineRefused, InvalidInput, NotFound
from packshot.plan import PlanSidecar, read_sidecar, sidecar_path
from packshot.resizing import PACKAGE

LOADED_BY_TRITON = "tensorrt"
"""The flavour of TensorRT that Triton's backend is built with."""

ONNX_MAX_BATCH = 32


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """How Triton is to run the file."""

    declared: str  # a line of config.pbtxt
    file: str  # the name that Triton looks for
    max_batch: int
    profile: int | None = None  # of a plan with several
    needs: str


def export_triton(bundle: Bundle, out: Path, engine: str = "fp32") -> Path:
    """Writes `out`/<name>, whole or not at all, and returns it. `engine`: its key in the manifest.

    Raises NotFound without such an engine, EngineRefused for a plan that Triton cannot load,
    InvalidInput for an engine of OpenVINO and if the folder exists.
    """
    manifest = bundle.manifest
    if engine not in manifest.engines:
        raise NotFound(
            f"version {manifest.version} of {manifest.model} has no engine {engine!r}; "
            f"there is {', '.join(manifest.engines)}"
        )
    file = manifest.engines[engine]
    if "openvino" in file.made_with:
        raise InvalidInput(
            f"{engine} is {file.file} as OpenVINO runs it, and the configuration written here is "
            f"for ONNX Runtime: name the engine of the same file, {_sibling(manifest, engine)}"
        )
    source = bundle.engine_path(engine)
    backend = _backend(source)
    target = out / manifest.model
    if target.exists():
        raise InvalidInput(f"{target} exists already: remove it, or choose another --out")
    with whole_folder(target) as folder:
        (folder / str(manifest.version)).mkdir()
        shutil.copyfile(source, folder / str(manifest.version) / backend.file)
        shutil.copyfile(bundle.folder / LABELS, folder / LABELS)
        (folder / "config.pbtxt").write_text(config(manifest, engine, backend), encoding="utf-8")
        (folder / "README.md").write_text(_readme(manifest, engine, backend), encoding="utf-8")
    return target


def _sibling(manifest: Manifest, engine: str) -> str:
    file = manifest.engines[engine].file
    others = (name for name, one in manifest.engines.items() if one.file == file and name != engine)
    return next(others, "fp32")


def _backend(source: Path) -> Backend:
    if source.name.endswith(PLAN):
        return _plan_backend(source, read_sidecar(sidecar_path(source)))
    return Backend(
        declared='backend: "onnxruntime"',
        file="model.onnx",
        max_batch=ONNX_MAX_BATCH,
        needs="Triton's ONNX Runtime backend, on a CPU or a GPU.",
    )


def _plan_backend(source: Path, sidecar: PlanSidecar) -> Backend:
    if sidecar.flavour != LOADED_BY_TRITON:
        raise EngineRefused(
            "wrong_flavour",
            f"{source.name} is a plan of {sidecar.flavour}; Triton loads those of "
            f"{LOADED_BY_TRITON} only: export fp32, or build a plan of that flavour",
        )
    # Triton uses one profile an instance, and sends it single images as well.
    usable = [n for n, profile in enumerate(sidecar.profiles) if profile.min_batch == 1]
    if not usable:
        raise EngineRefused(
            "wrong_shape", f"no profile of {source.name} takes a single image: export it again"
        )
    best = max(usable, key=lambda n: sidecar.profiles[n].max_batch)
    return Backend(
        declared='platform: "tensorrt_plan"',
        file="model.plan",
        max_batch=sidecar.profiles[best].max_batch,
        profile=best,
        needs=f"TensorRT {sidecar.version} exactly (each release of Triton brings one) and a GPU "
        f"of compute capability {' or '.join(sidecar.compute_capabilities)}.",
    )


def config(manifest: Manifest, engine: str, backend: Backend) -> str:
    """The text of config.pbtxt: Triton's ModelConfig in protobuf's text format."""
    shape = ", ".join(map(str, manifest.image.shape))
    classes, features = len(manifest.labels), manifest.embedding_width
    return "\n".join(
        [
            "# The input is decoded and resized by the client; logits are neither divided by the",
            "# temperature nor put through a softmax: see README.md beside this file.",
            f"name: {_quoted(manifest.model)}",
            backend.declared,
            f"max_batch_size: {backend.max_batch}",
            f'input [ {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [ {shape} ] }} ]',
            "output [",
            f'  {{ name: "{LOGITS}" data_type: TYPE_FP32 dims: [ {classes} ] '
            f'label_filename: "{LABELS}" }},',
            f'  {{ name: "{EMBEDDING}" data_type: TYPE_FP32 dims: [ {features} ] }}',
            "]",
            *_instances(backend),
            "dynamic_batching { }",
            *(
                f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
                for key, value in model_parameters(manifest, engine).items()
            ),
            "",
        ]
    )


def model_parameters(manifest: Manifest, engine: str) -> dict[str, str]:
    """What Triton's ModelConfig has no fields for."""
    return {
        "packshot.version": __version__,
        "packshot.engine": engine,
        "packshot.temperature": str(manifest.temperature),
        "packshot.min_confidence": str(manifest.min_confidence),
        "packshot.image": msgspec.json.encode(manifest.image).decode(),
    }


def _instances(backend: Backend) -> list[str]:
    if backend.profile is None:
        return []
    return [f'instance_group [ {{ count: 1 kind: KIND_GPU profile: [ "{backend.profile}" ] }} ]']


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _readme(manifest: Manifest, engine: str, backend: Backend) -> str:
    image = msgspec.json.format(msgspec.json.encode(manifest.image), indent=2).decode()
    height, width, channels = manifest.image.shape
    return f"""# {manifest.model}, version {manifest.version}, engine {engine}

Written by packshot {__version__} as a model repository of Triton. It needs
{backend.needs}

The network takes pixels and gives logits. What packshot's server does around it is now the
client's part:

1. **Decode and resize** each file to uint8 [{height}, {width}, {channels}], by this specification:

```json
{image}
```

   In words: {manifest.image.geometry}.
   In Python, `packshot.image.load_pixels(encoded, spec)` does it, with
   `spec = msgspec.json.decode(text, type=packshot.image.ImageSpec)` of the text above; a resizer
   that is not pillow needs the package {PACKAGE}. Anything else gives other pixels and other
   answers. Mean and standard deviation are in the network: do not apply them again.
2. **Probabilities** are softmax(logits / {manifest.temperature}). Triton's classification
   extension orders by logits: the order is right, its values are no probabilities.
3. **Abstain**, as packshot's server does, where no probability reaches {manifest.min_confidence}.

`{LABELS}` has a label a line, in the order of the logits. What else packshot's server does, such as
the check of answers on the machine that serves, deadlines and limits on images, Triton does in its
own way or not at all.
"""
