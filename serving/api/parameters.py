"""Parameters of the Open Inference Protocol: what is read of them; others are ignored."""

from collections.abc import Mapping

from packshot.errors import InvalidInput
from packshot.oip import open_inference_pb2 as pb
from serving.admission import Priority
from serving.pipeline import Terms

Parameters = Mapping[str, pb.InferParameter]

WHOLE_NUMBERS = ("int64_param", "uint64_param")
HIGHEST_PRIORITY = 1
PRIORITY_LEVELS = 2  # what is above counts as the last of them
LONGEST_TIMEOUT_SECONDS = 86_400.0  # clocks of event loops do not take every number


def whole_number(parameters: Parameters, name: str) -> int | None:
    """0 or more, None if it was not sent. Raises InvalidInput."""
    if name not in parameters:  # reading it would add it
        return None
    kind = parameters[name].WhichOneof("parameter_choice")
    value = getattr(parameters[name], kind) if kind in WHOLE_NUMBERS else None
    if value is None or value < 0:
        found = kind if value is None else value
        raise InvalidInput(f"parameter {name} is {found}; send an int64_param that is 0 or more")
    return int(value)


def terms(parameters: Parameters, call_seconds: float | None) -> Terms:
    """`timeout` in microseconds, 0 for none, and `priority`. Raises InvalidInput.

    The shorter of the parameter and the call's own deadline holds. Priority 1 is the highest, 0 the
    default; whatever is lower than 1 is bulk.
    """
    microseconds = whole_number(parameters, "timeout")
    seconds = min(microseconds / 1e6, LONGEST_TIMEOUT_SECONDS) if microseconds else None
    allowed = [one for one in (seconds, call_seconds) if one is not None]
    interactive = (whole_number(parameters, "priority") or 0) <= HIGHEST_PRIORITY
    shorter = min(allowed, default=None)
    return Terms(
        timeout_seconds=shorter,
        call_ends=shorter is not None and shorter == call_seconds,
        priority=Priority.INTERACTIVE if interactive else Priority.BULK,
    )
