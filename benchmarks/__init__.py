"""What measures speed: always a ratio of two things in one run, never a test."""

import os

# Before any benchmark, or a server that it starts, imports onnxruntime, which reports to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
