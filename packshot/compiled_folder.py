"""Where this user's compiled models are kept: exporters leave them there, servers look there."""

from pathlib import Path

DEFAULT_FOLDER = Path("~/.cache/packshot")


def home_expanded(folder: Path) -> Path | None:
    """None for a user without a home."""
    try:
        return folder.expanduser()
    except RuntimeError:
        return None
