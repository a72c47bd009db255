"""What `--check` tells: which engine of each model would serve, how right and how fast it is."""

from packshot import tables
from serving.model import Model
from serving.models import Models

HEADINGS = ("model", "version", "engine", "golden", "tolerance", "1 image", "full batch")


def table(models: Models) -> str:
    """Golden: the largest |logit difference| from PyTorch. Times are of one run on this machine."""
    lines = [tables.table([HEADINGS, *(_row(model) for model in models)])]
    lines += [_refusal(model) for model in models if model.opened.refusals]
    for name, versions in models.rejected.items():
        lines += [
            f"{name}: not version {version}: {one.reason}" for version, one in versions.items()
        ]
    return "\n".join(lines)


def _row(model: Model) -> tuple[str, ...]:
    opened, runs = model.opened, model.opened.profile.lanes
    largest = max(runs)
    return (
        model.name,
        str(model.version),
        model.engine,
        f"{opened.golden_difference:.2g}",
        f"{opened.file.tolerance:.2g}",
        f"{opened.profile.alone.get(1, runs[1]) * 1000:.1f} ms",
        f"{largest} in {runs[largest] * 1000:.1f} ms",
    )


def _refusal(model: Model) -> str:
    return "\n".join(
        f"{model.name}: not {refusal.engine} ({refusal.reason}): {refusal.message}"
        for refusal in model.opened.refusals
    )
