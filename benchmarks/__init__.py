"""What measures speed: always a ratio of two things in one run, never a test."""

import os

import serving  # noqa: F401  # its way to poll, for the baselines too

# Before any benchmark, or a server that it starts, imports onnxruntime, which reports to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
