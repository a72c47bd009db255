"""packshot: the client of the classification service, and the contract that its parts share."""

from packshot.channel import Tls
from packshot.client import Client, ModelInfo, Result
from packshot.errors import PackshotError
from packshot.prediction import Prediction

__all__ = ["Client", "ModelInfo", "PackshotError", "Prediction", "Result", "Tls"]
__version__ = "0.1.0"
