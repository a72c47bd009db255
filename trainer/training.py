"""What a run was asked to do, in one record; what its parts are made of."""

import msgspec

from packshot.image import ImageSpec
from trainer.cache import PixelCache
from trainer.data import Split
from trainer.hardware import Hardware
from trainer.learner import Learner
from trainer.model import PixelNetwork, Weights
from trainer.objective import class_weights
from trainer.probe import Floor
from trainer.recipes import Options, Recipe
from trainer.schedule import Schedule
from trainer.state import Identity


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the network itself."""

    split: Split
    recipe: Recipe
    spec: ImageSpec
    options: Options
    weights: Weights
    hardware: Hardware = Hardware()
    cache: PixelCache | None = None
    floor: Floor | None = None

    @property
    def identity(self) -> Identity:
        return Identity(
            architecture=self.options.arch,
            data=self.split.fingerprint,
            image=self.spec,
            recipe=self.recipe,
            weights=self.weights,
            seed=self.options.seed,
        )

    def schedule(self, steps: int | None = None) -> Schedule:
        """`steps`: fewer than the recipe's."""
        return Schedule(self.recipe, self.split.train_labels, self.options.seed, steps)

    def learner(self, network: PixelNetwork, steps: int) -> Learner:
        weight = class_weights(self.recipe.class_weights, self.split.train_counts)
        return Learner(network, self.recipe, self.hardware, weight=weight, steps=steps)
