"""SR4-World: a deterministic world of coloured shapes that move, bounce and ring."""

from data_pipelines.world.config import Config
from data_pipelines.world.scene import COLORS
from data_pipelines.world.scene import Contact
from data_pipelines.world.scene import Object
from data_pipelines.world.scene import SHAPES
from data_pipelines.world.voice import Vowel
from data_pipelines.world.world import EDITS
from data_pipelines.world.world import Sample
from data_pipelines.world.world import Truth
from data_pipelines.world.world import World

__all__ = [
  'COLORS',
  'EDITS',
  'SHAPES',
  'Config',
  'Contact',
  'Object',
  'Sample',
  'Truth',
  'Vowel',
  'World',
]
