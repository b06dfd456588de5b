"""The synthetic retail world: products, words, regions and drawn photos."""

from simulations.world.build import build_world
from simulations.world.public import build_public

__all__ = ["build_public", "build_world"]
