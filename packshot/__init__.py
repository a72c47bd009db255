"""packshot: the client of the classification service, and the contract that its parts share."""

from packshot.answers import Embedding, ModelInfo, Result
from packshot.channel import Tls
from packshot.client import Client
from packshot.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    PackshotError,
    ServiceFailed,
    Unauthenticated,
    Unavailable,
)
from packshot.prediction import Prediction

__all__ = [
    "Client",
    "DeadlineExceeded",
    "Embedding",
    "InvalidInput",
    "ModelInfo",
    "NotFound",
    "Overloaded",
    "PackshotError",
    "Prediction",
    "Result",
    "ServiceFailed",
    "Tls",
    "Unauthenticated",
    "Unavailable",
]
__version__ = "0.1.0"
