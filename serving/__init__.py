"""The server: a bundle in, a gRPC service out. Read downwards, the files are a request's path."""
