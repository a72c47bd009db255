"""`packshot models`: what is in the bundle store, and what of it is served."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from packshot.audit import faults, not_tried
from packshot.bundle import open_bundle, read_manifest
from packshot.difference import difference
from packshot.errors import DamagedFile, NotFound, PackshotError
from packshot.inventory import freed_bytes, inventory, version_record
from packshot.store import (
    current_version,
    model_names,
    previous_version,
    prunable,
    prune,
    release,
    rollback,
    served_version,
    there_are,
    versions,
)
from packshot.tables import difference_text, show_text, size_text, versions_table
from packshot.triton import export_triton

FORMATS = {"triton": export_triton}


def list_versions(options: argparse.Namespace) -> int:
    names = [options.name] if options.name else model_names(options.models)
    found = [record for name in names for record in inventory(_model(options, name))]
    _print(options, found, versions_table(found))
    for name in names:
        _warn_if_none_is_served(options.models / name)
    return 1 if any(record.fault for record in found) else 0


def show(options: argparse.Namespace) -> int:
    folder = _version(options)
    manifest = read_manifest(folder)
    record = version_record(folder, served=served_version(folder.parent) == int(folder.name))
    shown = {**msgspec.to_builtins(record), "manifest": msgspec.to_builtins(manifest)}
    _print(options, shown, show_text(folder, record, manifest))
    return 0


def verify(options: argparse.Namespace) -> int:
    if options.all:
        model = _model(options, options.name)
        folders = [model / str(version) for version in versions(model)]
    else:
        folders = [_version(options)]
    found = {folder: faults(folder) for folder in folders}
    record = {int(folder.name): one for folder, one in found.items()}
    _print(options, record, "\n".join(_verdict(options.name, *one) for one in found.items()))
    return 1 if any(found.values()) else 0


def _verdict(name: str, folder: Path, found: list[str]) -> str:
    if not found:
        return f"{name} {folder.name}: sound; {not_tried(folder)}"
    count = "1 fault" if len(found) == 1 else f"{len(found)} faults"
    return "\n".join([f"{name} {folder.name}: {count}", *(f"  {fault}" for fault in found)])


def release_version(options: argparse.Namespace) -> int:
    folder = _version(options)
    _check(folder, options)
    before = served_version(folder.parent)
    release(folder.parent, options.version)
    print(_now_served(options.name, options.version, before))
    return 0


def roll_back(options: argparse.Namespace) -> int:
    model = _model(options, options.name)
    before = current_version(model)
    version = previous_version(model)
    if version is not None:
        _check(model / str(version), options)
    print(_now_served(options.name, rollback(model), before))
    return 0


def prune_versions(options: argparse.Namespace) -> int:
    model = _model(options, options.name)
    chosen = prunable(model, keep=options.keep)
    freed = freed_bytes(model, chosen)
    removed = chosen if options.dry_run else prune(model, keep=options.keep)
    verb = "would remove" if options.dry_run else "removed"
    listed = ", ".join(map(str, removed)) or "nothing"
    left = [version for version in versions(model) if version not in removed]
    print(f"{options.name}: {verb} {listed} ({size_text(freed)}); {', '.join(map(str, left))} stay")
    return 0


def diff(options: argparse.Namespace) -> int:
    model = _model(options, options.name)
    before, after = (
        read_manifest(_there(model, version)) for version in (options.before, options.after)
    )
    found = difference(model, before, after)
    _print(options, found, difference_text(found))
    return 0


def export(options: argparse.Namespace) -> int:
    bundle = open_bundle(_version(options))
    print(f"{options.format}: {FORMATS[options.format](bundle, options.out, options.engine)}")
    return 0


def _model(options: argparse.Namespace, name: str) -> Path:
    names = model_names(options.models)
    if name not in names:
        raise NotFound(f"no model {name!r} in {options.models}; there is {', '.join(names)}")
    return Path(options.models / name)


def _version(options: argparse.Namespace) -> Path:
    """The folder of the version that was asked for, or else of the one that is served."""
    model = _model(options, options.name)
    if options.version is None:
        return model / str(current_version(model))
    return _there(model, options.version)


def _there(model: Path, version: int) -> Path:
    if version not in versions(model):
        raise NotFound(f"{model} has no version {version}; {there_are(versions(model))}")
    return model / str(version)


def _warn_if_none_is_served(model: Path) -> None:
    try:
        current_version(model)
    except PackshotError as error:
        print(f"packshot: no version of {model.name} is served: {error}", file=sys.stderr)


def _check(folder: Path, options: argparse.Namespace) -> None:
    if options.no_verify:
        return
    if found := faults(folder):
        listed = "".join(f"\n  {fault}" for fault in found)
        raise DamagedFile(f"{folder} is not released:{listed}")


def _now_served(name: str, version: int, before: int | None) -> str:
    if version == before:
        return f"{name}: version {version} is served, as before; later versions wait for a release"
    return f"{name}: version {version} is released, in the place of {before or 'none'}"


def _print(options: argparse.Namespace, record: Any, text: str) -> None:
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())
    else:
        print(text)


def add_models_verb(verbs: Any) -> None:
    """`verbs`: the subparsers of the `packshot` command."""
    text = "list, check, release, compare and export the versions of a bundle store"
    parser = verbs.add_parser("models", help=text, description=text)
    models = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_list(models)
    _add_show(models)
    _add_verify(models)
    _add_release(models)
    _add_rollback(models)
    _add_prune(models)
    _add_diff(models)
    _add_export(models)


def _add_list(models: Any) -> None:
    verb = _verb(models, "list", list_versions, "list versions; * marks the one to serve")
    verb.add_argument("name", nargs="?", metavar="NAME", help="this model only")
    _add_json(verb)


def _add_show(models: Any) -> None:
    verb = _verb(models, "show", show, "show what a version is: engines, accuracy, provenance")
    _add_name_and_version(verb)
    _add_json(verb)


def _add_verify(models: Any) -> None:
    verb = _verb(
        models,
        "verify",
        verify,
        "check hashes, sidecars and labels, and that this machine decodes the golden samples to "
        "the right pixels; engines are not run: `python -m serving --check` does that. "
        "Names every fault; exit status 1 if there is one",
    )
    _add_name_and_version(verb)
    verb.add_argument("--all", action="store_true", help="every version")
    _add_json(verb)


def _add_release(models: Any) -> None:
    verb = _verb(
        models,
        "release",
        release_version,
        "verify a version and make it the one to serve, whatever is added later; running servers "
        "follow. Remove the file `released` to serve the highest again",
    )
    verb.add_argument("name", metavar="NAME", help="name of the model")
    verb.add_argument("version", type=int, metavar="VERSION", help="the one to serve")
    _add_no_verify(verb)


def _add_rollback(models: Any) -> None:
    verb = _verb(
        models,
        "rollback",
        roll_back,
        "release the version that was served before: of the releases made, the one before the "
        "current; without any, the highest version below it. Again, and it goes one further back",
    )
    verb.add_argument("name", metavar="NAME", help="name of the model")
    _add_no_verify(verb)


def _add_prune(models: Any) -> None:
    verb = _verb(
        models,
        "prune",
        prune_versions,
        "remove old versions, never the one to serve nor the one that a rollback would release",
    )
    verb.add_argument("name", metavar="NAME", help="name of the model")
    verb.add_argument(
        "--keep", type=int, required=True, metavar="N", help="keep the newest N, 1 or more"
    )
    verb.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _add_diff(models: Any) -> None:
    verb = _verb(models, "diff", diff, "show what changed from one version to another")
    verb.add_argument("name", metavar="NAME", help="name of the model")
    verb.add_argument("before", type=int, metavar="A", help="the version before")
    verb.add_argument("after", type=int, metavar="B", help="the version after")
    _add_json(verb)


def _add_export(models: Any) -> None:
    verb = _verb(models, "export", export, "write a version for another server")
    _add_name_and_version(verb)
    verb.add_argument("--format", choices=sorted(FORMATS), required=True)
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="DIR/NAME is written; it must be new"
    )
    verb.add_argument(
        "--engine", default="fp32", help="as `packshot models show` lists it (default: %(default)s)"
    )


def _verb(models: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = models.add_parser(
        name, help=text.split(";")[0].split(":")[0], description=text
    )
    verb.set_defaults(run=run)
    verb.add_argument(
        "--models",
        type=Path,
        default=Path(os.environ.get("PACKSHOT_MODELS", "models")),
        metavar="DIR",
        help="bundle store (default: $PACKSHOT_MODELS, if set, as the server's; here %(default)s)",
    )
    return verb


def _add_name_and_version(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="name of the model")
    verb.add_argument(
        "version", nargs="?", type=int, metavar="VERSION", help="default: the one to serve"
    )


def _add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


def _add_no_verify(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--no-verify", action="store_true", help="release it even if it has faults")
