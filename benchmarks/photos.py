"""The photographs that benchmarks send: those of the load tester."""

from packshot.load.pictures import photos

__all__ = ["photos"]
