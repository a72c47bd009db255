"""The server: a bundle in, a gRPC service out. Read downwards, the files are a request's path."""

import os

# Before gRPC is imported: sockets are read by the thread that waits for calls,
# and not by further ones that hand over to it (docs/decisions.md).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

# Else every stranger who fails at a TLS handshake writes a line, which is no JSON, to the log.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
