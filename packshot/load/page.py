"""load.html."""

from packshot.load.results import Results


def page(results: Results) -> str:
    return ""
