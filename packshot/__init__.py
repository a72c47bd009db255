"""packshot: the client of the classification service, and the contract that its parts share."""

from packshot.answers import Embedding, ModelInfo, Result
from packshot.channel import Tls
from packshot.client import Client
from packshot.errors import PackshotError
from packshot.prediction import Prediction

__all__ = ["Client", "Embedding", "ModelInfo", "PackshotError", "Prediction", "Result", "Tls"]
__version__ = "0.1.0"
