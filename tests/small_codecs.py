"""The codecs with weights, as small as they get, and files of them."""

from flax import nnx
import safetensors.numpy

from sr4.convert import mmaudio
from sr4.convert import rules
from sr4.convert import wan
from sr4.core import tree
from sr4.models import audio_vae
from sr4.models import video_vae
from sr4.models import vocoder
from tests.models import reference

VIDEO = dict(channels=4, width=8, blocks=1, mean=(0.1, -0.2, 0.3, 0.0), std=(1.0, 2.0, 0.5, 1.5))
VOCODER = dict(width=64, rates=(8, 8, 4, 2), windows=(3,), dilations=(1,))
AUDIO = dict(channels=8, width=16, blocks=1, sample_rate=8000)


def video(**fields) -> video_vae.VideoVAE:
  config = video_vae.Config(**(VIDEO | dict(dtype='float32') | fields))
  like = tree.abstract(lambda: video_vae.VideoVAE(config, rngs=nnx.Rngs(0)))
  return reference.drawn(like, seed=3)


def audio() -> audio_vae.AudioVAE:
  config = audio_vae.Config(**AUDIO, vocoder=vocoder.Config(**VOCODER))
  like = tree.abstract(lambda: audio_vae.AudioVAE(config, rngs=nnx.Rngs(0)))
  return reference.drawn(like, seed=4)


def write(folder) -> dict:
  """Files of such codecs in public names; sections of a config that name them."""
  picture, sound = video(), audio()
  own = {name: x for name, x in tree.to_flat(sound).items() if not name.startswith('vocoder.')}
  files = {
    'video': rules.export(picture, wan.diffusers(picture.config)),
    'audio': rules.export(own, mmaudio.vae(sound.config)),
    'vocoder': rules.export(sound.vocoder, mmaudio.bigvgan(sound.config.vocoder)),
  }
  paths = {name: str(folder / f'{name}.safetensors') for name in files}
  for name, tensors in files.items():
    safetensors.numpy.save_file(tensors, paths[name])
  return dict(
    video_codec=dict(name='wan2.1', weights=paths['video'], dtype='float32') | VIDEO,
    audio_codec=dict(name='mmaudio', weights=paths['audio'])
    | AUDIO
    | dict(vocoder=dict(weights=paths['vocoder']) | VOCODER),
  )
