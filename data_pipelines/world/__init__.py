"""SR4-World: a deterministic world of coloured shapes that move, bounce and ring."""
from data_pipelines.world.config import Config
from data_pipelines.world.scene import COLORS, SHAPES, Contact, Object
from data_pipelines.world.voice import Vowel
from data_pipelines.world.world import EDITS, Sample, Truth, World

__all__ = ['COLORS', 'EDITS', 'SHAPES', 'Config', 'Contact', 'Object', 'Sample', 'Truth', 'Vowel',
           'World']
