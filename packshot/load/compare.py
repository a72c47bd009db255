"""Two results side by side."""

from packshot.load.results import Results


def comparison_text(before: Results, after: Results) -> str:
    return ""
