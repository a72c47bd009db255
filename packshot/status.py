"""The one table between packshot's errors and gRPC status codes, used by server and client."""

import grpc

from packshot import errors

CODES: dict[type[errors.PackshotError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    # Never UNAVAILABLE for overload: clients and meshes retry that, which multiplies the load.
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ServiceFailed: grpc.StatusCode.INTERNAL,
}
# gRPC itself uses RESOURCE_EXHAUSTED for this, where trying again later is no use.
TOO_LARGE = "message larger than max"
_ERRORS = {code: error for error, code in CODES.items()}


def status_code(error: Exception) -> grpc.StatusCode:
    """The status for `error`; INTERNAL for what nobody foresaw."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return grpc.StatusCode.INTERNAL


def error_from_status(code: grpc.StatusCode, details: str) -> errors.PackshotError:
    """The error that a client raises for a status."""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE in details:
        return errors.InvalidInput(f"{details}: send fewer or smaller images in a request")
    if code is grpc.StatusCode.CANCELLED:
        # Not by us: gRPC's answer to what reached a server that had just stopped to accept.
        return errors.Unavailable(f"the server ended the call ({details}): it may be shutting down")
    kind = _ERRORS.get(code, errors.ServiceFailed)
    return kind(details if code in _ERRORS else f"{code.name}: {details}")
