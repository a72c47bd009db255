"""The progress bar over images, and standard output beside it."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

BAR_FROM = 20  # images: fewer are answered before a bar is of use

T = TypeVar("T")


def with_bar(results: Iterable[T], count: int) -> Iterable[T]:
    """The same `count` results, one an image; on a terminal a bar tells how many have come."""
    hidden = count < BAR_FROM or not sys.stderr.isatty()
    return tqdm(results, total=count, unit="image", disable=hidden)


class AboveBar:
    """Standard output, in whole lines, above the progress bar where both are on a terminal."""

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            tqdm.write(line)
        return len(text)
