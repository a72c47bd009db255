"""packshot: the client of the classification service, and the contract that its parts share."""

from packshot.client import Client, ModelInfo, Result
from packshot.errors import PackshotError
from packshot.prediction import Prediction

__all__ = ["Client", "ModelInfo", "PackshotError", "Prediction", "Result"]
__version__ = "0.1.0"
