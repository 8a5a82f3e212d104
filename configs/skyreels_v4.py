"""The training of SkyReels-V4, Table 1 of the report as a table.

  sr4 train --config configs/skyreels_v4.py:video3,large --workdir out/sr4/video3

`:STAGE[,SIZE][,CHIPS][,published|,world]`.  STAGE is a row of STAGES.  SIZE is debug, tiny, small,
base (the default) or large, the last three with -hd256, too.  CHIPS is v5e, v6e, v5p or tpu7x: laid
out over a slice of them (PODS).  Workdirs of one training are siblings named after their stages:
each stage starts from the weights in ../THE_ONE_BEFORE/checkpoints.  Records lie in data.root as
KIND/FRAMESxHEIGHTxWIDTH, such as clips/81x480x832, or sounds/15s, and what is held out likewise in
data.root/held_out (--config.validate.every=0 does without).  A run prints its buckets, epochs and
tokens before its first step.

`published` takes Wan2.1's and MMAudio's codecs, and Qwen3-VL-8B as text encoder, from
the files that --config.video_codec.weights, --config.audio_codec.weights,
--config.audio_codec.vocoder.weights and --config.text.weights name (docs/codecs.md); else they are
codecs without weights, in the same token geometry, and hashed words.

`world` is the same training at the scale of a toy, on SR4-World:

  for stage in video1 video2 video3 video4 video5 video6 audio joint sft1 sft2 refiner; do
    python -m data_pipelines.world --config configs/skyreels_v4.py:$stage,debug,world --count 256
    sr4 train --config configs/skyreels_v4.py:$stage,debug,world --workdir out/curriculum/$stage
  done

Each stage ends with a lower held-out loss than it began with (tests/curriculum_test.py).

What the report leaves open and is chosen here: learning rates, the tokens of a step, the aspect
ratios, the hours of sound, how the tasks of a stage are spread over its buckets.  The Refiner's
buckets are 1K alone of its 1K to 4K.
"""

import dataclasses
import math

import ml_collections

FPS = 16
TOKENS_A_STEP = 1 << 25  # of the global batch, about
VIDEO, AUDIO = r'^(dual\.|single\.)?video\.', r'^(dual\.|single\.)?audio\.'
REFINED = VIDEO + r'(?!cross|tokens\.gate)'  # It hears nothing, and its gates are new.


@dataclasses.dataclass(frozen=True)
class Stage:
  """A row of Table 1.  Volumes are millions of samples."""

  init: tuple[tuple[str, str], ...]  # (stage, names of the parameters that come from it)
  epochs: int
  learning_rate: float
  captions: dict
  images: float = 0.0
  clips: float = 0.0
  sounds: float = 0.0
  resolutions: tuple[int, ...] = ()
  seconds: tuple[int, ...] = ()
  image_tasks: dict = dataclasses.field(default_factory=lambda: {'t2i': 1.0})
  clip_tasks: dict = dataclasses.field(default_factory=lambda: {'t2v': 1.0})
  references: dict = dataclasses.field(default_factory=dict)  # task: its share of the clips
  keyframed: tuple[int, ...] = ()  # resolutions of which only a keyframe a second is whole
  refine: bool = False  # from half as large at half the rate, without sound, by sparse attention
  frozen: tuple[str, ...] = ()  # names of parameters


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large samples and batches are: of the report, or of a toy."""

  images: dict  # resolution: (height, width) of each bucket
  clips: dict
  frames: dict  # seconds: frames
  choices: int  # resolutions and lengths of a stage that have buckets of their own
  rows: tuple[int, int]  # fewest, most of a global batch
  slots: dict  # task: fields of its references


REPORT = Scale(
  # In multiples of 16: a latent is 8 pixels wide, a patch 2 latents.
  images={
    256: ((256, 256), (192, 336), (336, 192)),
    480: ((640, 640), (480, 832)),
    720: ((960, 960),),
    1080: ((1440, 1440),),
  },
  clips={256: (192, 336), 480: (480, 832), 720: (720, 1280), 1080: (1088, 1920)},
  frames={s: 1 + FPS * s for s in range(2, 16)},
  choices=3,
  rows=(64, 4096),
  slots=dict(
    image_ref=dict(reference_images=9),
    video_ref=dict(reference_frames=1 + FPS * 10),
    audio_ref=dict(reference_seconds=15.0),
  ),
)
TOY = Scale(
  images={256: ((16, 16),), 480: ((16, 24),), 720: ((16, 32),), 1080: ((32, 32),)},
  clips={256: (16, 16), 480: (16, 24), 720: (16, 32), 1080: (32, 32)},
  frames={s: 1 + FPS for s in range(2, 16)},
  choices=1,
  rows=(8, 8),
  slots=dict(
    image_ref=dict(reference_images=2),
    video_ref=dict(reference_frames=17),
    audio_ref=dict(reference_seconds=0.5),
  ),
)


SHORT = dict(short=0.5, long=0.5)
MIXED = dict(short=0.2, long=0.6, structured=0.2)
STRUCTURED = dict(short=0.0, structured=1.0)
ALL = ''
# Of 1000 M images and 400 M clips each of these four tasks has 5 %, that is 70 M.
FIVE = dict(
  image_tasks={'t2i': 930, 'inpaint': 70},
  clip_tasks={'t2v': 190, 'i2v': 70, 'extend': 70, 'edit': 70},
)
SAME = dict(
  image_tasks={'t2i': 1, 'inpaint': 1},
  clip_tasks={'t2v': 1, 'inpaint': 1},
)
# A fifth of the clips has references, of images, videos and sounds alike.
FIFTH = {'image_ref': 0.2 / 3, 'video_ref': 0.2 / 3, 'audio_ref': 0.2 / 3}

STAGES = dict(
  video1=Stage((), 3, 1e-4, SHORT, images=3000, resolutions=(256,), frozen=(AUDIO,)),
  video2=Stage(
    (('video1', VIDEO),),
    3,
    1e-4,
    SHORT,
    images=1000,
    clips=400,
    resolutions=(256,),
    seconds=(2, 5, 10),
    frozen=(AUDIO,),
  ),
  video3=Stage(
    (('video2', VIDEO),),
    2,
    1e-4,
    MIXED,
    images=1000,
    clips=400,
    resolutions=(256,),
    seconds=(2, 5, 15),
    frozen=(AUDIO,),
    **FIVE,
  ),
  video4=Stage(
    (('video3', VIDEO),),
    2,
    1e-4,
    MIXED,
    images=100,
    clips=100,
    resolutions=(256, 480),
    seconds=(2, 5, 15),
    frozen=(AUDIO,),
    **SAME,
  ),
  video5=Stage(
    (('video4', VIDEO),),
    2,
    5e-5,
    MIXED,
    images=50,
    clips=50,
    resolutions=(480, 720, 1080),
    seconds=(5, 15),
    frozen=(AUDIO,),
    **SAME,
  ),
  # Its 20 M images are the references.
  video6=Stage(
    (('video5', VIDEO),),
    2,
    5e-5,
    MIXED,
    clips=50,
    resolutions=(480, 720, 1080),
    seconds=(5,),
    references={'image_ref': 0.2, 'video_ref': 0.2},
    frozen=(AUDIO,),
  ),
  # "Hundreds of thousands of hours": 300,000 are 72 M sounds of 15 seconds.
  audio=Stage((), 3, 1e-4, MIXED, sounds=72, seconds=(5, 15), frozen=(VIDEO,)),
  joint=Stage(
    (('video6', VIDEO), ('audio', AUDIO)),
    2,
    5e-5,
    STRUCTURED,
    clips=50,
    sounds=25,
    resolutions=(720, 1080),
    seconds=(5, 15),
    clip_tasks={'t2v': 1, 't2av': 1},
  ),
  sft1=Stage(
    (('joint', ALL),),
    3,
    1e-5,
    STRUCTURED,
    clips=5,
    resolutions=(720, 1080),
    seconds=(5, 10, 15),
    clip_tasks={'t2av': 1},
    references=FIFTH,
    keyframed=(1080,),
  ),
  sft2=Stage(
    (('sft1', ALL),),
    3,
    1e-5,
    STRUCTURED,
    clips=1,
    resolutions=(720, 1080),
    seconds=(5, 10, 15),
    clip_tasks={'t2av': 1},
    references=FIFTH,
    keyframed=(1080,),
  ),
  refiner=Stage(
    (('sft2', REFINED),),
    2,
    2e-5,
    STRUCTURED,
    images=1,
    clips=1,
    resolutions=(1080,),
    seconds=(5, 15),
    image_tasks={'t2i': 930, 'inpaint': 70},
    clip_tasks={'t2v': 190, 'i2v': 70, 'extend': 70, 'edit': 70},
    references={'image_ref': 0.1, 'video_ref': 0.1},  # As `sft2`, of what it can see.
    refine=True,
  ),
)


@dataclasses.dataclass(frozen=True)
class Pod:
  """How a training lies over chips.  More of them than fsdp x seq are more `data`."""

  fsdp: int
  seq: int
  accumulate: int
  remat: str
  tile: int  # tokens of a tile of sparse attention


# By the stage's clips: up to 480 rows, and above.  Chosen by `sr4 plan` for `large` on v5p:8x8x8,
# v5e:16x16, v6e:16x16 and tpu7x:4x4x4 (docs/pods.md).
PODS = dict(
  v5e=(Pod(32, 8, 16, 'full', 256), Pod(8, 16, 16, 'full', 256)),
  v6e=(Pod(16, 4, 8, 'attention', 256), Pod(8, 8, 8, 'attention', 256)),
  v5p=(Pod(32, 2, 1, 'results', 128), Pod(4, 16, 2, 'results', 128)),
  tpu7x=(Pod(32, 2, 4, 'results', 256), Pod(4, 16, 8, 'attention', 256)),
)

PLAIN = dict(
  video_codec=dict(name='dct', space_factor=8, channels=16),
  audio_codec=dict(name='mdct', sample_rate=44100, audio_channels=1, hop=1024, bands=40),
  text=dict(name='bytes', width=512, tokens=512),
)
PUBLISHED = dict(
  video_codec=dict(name='wan2.1', weights='', tile=0),
  audio_codec=dict(name='mmaudio', weights='', vocoder=dict(weights='')),
  text=dict(name='qwen3-vl-8b', weights='', layer=34, tokens=1408, cache=''),
)


def get_config(arg: str = 'video1') -> ml_collections.ConfigDict:
  name, *others = arg.split(',')
  world = 'world' in others
  chips = [other for other in others if other in PODS]
  codecs = [other for other in others if other in ('published', 'world')]
  sizes = [other for other in others if other not in (*PODS, *codecs)] or ['base']
  if name not in STAGES or max(map(len, (sizes, chips, codecs))) > 1:
    raise ValueError(
      'write STAGE[,SIZE][,CHIPS][,published|,world] with a STAGE among '
      f'{", ".join(STAGES)} and CHIPS among {", ".join(PODS)}'
    )
  stage = STAGES[name]
  pod = PODS[chips[0]][max(stage.resolutions, default=0) > 480] if chips else None
  parts = pod.accumulate if pod else 1
  if not (stage.clips or stage.sounds):
    parts = max(1, parts // 4)  # Pictures are small.
  both, tile = not stage.frozen and not stage.refine, pod.tile if pod else 128
  root = 'out/curriculum/data' if world else 'data'
  found = dict(buckets(stage, TOY if world else REPORT))
  config = ml_collections.ConfigDict(
    dict(
      model=dict(
        size=sizes[0],
        remat=pod.remat if pod else 'attention',
        **(dict(audio=False, sparse=dict(tile=(tile,))) if stage.refine else {}),
      ),
      **(PUBLISHED if 'published' in codecs else PLAIN),
      data=dict(root=root, captions=stage.captions, buckets=found),
      flow=dict(
        independent_times=0.2 if both else 0.0,  # Sound for given video, and video for sound.
        drop=dict(text=0.1, references=0.1, modality=0.1 if both else 0.0),
      ),
      optimizer=dict(learning_rate=stage.learning_rate, warmup=1000, frozen=stage.frozen),
      step=dict(
        ema=0.9999,
        accumulate=parts,
        sparsify=0.03 if stage.refine else 0.0,
      ),
      init={
        before: dict(checkpoints=f'../{before}/checkpoints', names=names)
        for before, names in stage.init
      },
      # A bucket's weight is its steps.
      train=dict(steps=math.ceil(sum(b['weight'] for b in found.values())), save_every=1000),
      validate=dict(every=1000, batches=4, root=f'{root}/held_out'),
      preview=dict(),
      sample=dict(num_inference_steps=50, video_guidance_scale=5.0, audio_guidance_scale=5.0),
      mesh=dict(data=-1, fsdp=pod.fsdp, seq=pod.seq) if pod else dict(),
    )
  )
  if world:
    toy(config)
  return config


def toy(config):
  """A model and codecs that learn SR4-World on a laptop, a stage in a minute."""
  config.model.update(dtype='float32', remat='none')
  config.video_codec.update(space_factor=4, channels=12)
  config.audio_codec.update(sample_rate=8000, hop=256, bands=32)
  config.text.update(width=32, tokens=64)
  config.optimizer.update(learning_rate=40 * config.optimizer.learning_rate, warmup=10, b2=0.99)
  config.step.ema = 0.9
  if 'sparse' in config.model:
    config.model.sparse.tile = (64,)
    config.step.sparsify = 0.34  # At its own after 80 steps.
  config.train.update(steps=100, save_every=100)
  config.validate.update(every=100, batches=2)


def buckets(stage: Stage, scale: Scale):
  """(name, config) of each static shape; its weight is the steps that its volume takes."""
  for kind, millions, fields in shapes(stage, scale):
    if not millions:
      continue
    frames, height, width = fields['frames'], fields.get('height', 0), fields.get('width', 0)
    high = fields.get('keyframe_scale', 1)
    folder = f'{kind}/{frames}x{height * high}x{width * high}'
    if not frames:
      folder = f'{kind}/{fields["seconds"]:g}s'
    cells = height * width // 256  # Of one frame at 8 x 8 pixels a latent and 2 x 2 a patch.
    latents = lambda frames: 1 + (frames - 1) // 4 if frames else 0
    tokens = latents(frames) * cells if frames else round(44 * fields['seconds'])
    tokens += fields.get('keyframes', 0) * cells * high**2
    references = fields.get('reference_images', 0) + latents(fields.get('reference_frames', 0))
    tokens += references * cells
    fewest, most = scale.rows
    rows = min(most, max(fewest, 1 << int(math.log2(TOKENS_A_STEP / max(tokens, 1)))))
    weight = stage.epochs * millions * 1e6 / rows
    name = folder.replace('/', '-')
    yield name, dict(records=(folder,), rows=rows, weight=weight, fps=float(FPS)) | fields


def refined(shape: dict) -> dict:
  """A bucket of the Refiner's, for clips of this shape: from half as large at half the rate, with a
  keyframe a second, as the base model makes them."""
  frames, twice = shape['frames'], lambda frames: 2 * frames - 1
  low = dict(frames=frames, height=shape['height'] // 2, width=shape['width'] // 2)
  fast = dict(frames=twice(frames), fps=2.0 * FPS, low=low | dict(keyframes=(frames - 1) // FPS))
  if 'reference_frames' in shape:
    fast['reference_frames'] = twice(shape['reference_frames'])
  return shape | fast


def shapes(stage: Stage, scale: Scale):
  """(kind of records, millions of samples, shape and tasks) of each bucket."""
  sound = AUDIO not in stage.frozen and not stage.refine
  lengths = stage.seconds[: scale.choices]
  resolutions = dict.fromkeys(stage.resolutions[: scale.choices] + stage.keyframed)
  plain = stage.clips * (1 - sum(stage.references.values()))
  for resolution in resolutions:
    sides = scale.images[resolution]
    for height, width in sides:
      shape = dict(frames=1, height=height, width=width, sound=False)
      if stage.refine:
        shape |= dict(low=dict(frames=1, height=height // 2, width=width // 2))
      share = stage.images / len(resolutions) / len(sides)
      yield 'images', share, dict(shape, tasks=stage.image_tasks)
    height, width = scale.clips[resolution]
    for seconds in lengths:
      shape = dict(frames=scale.frames[seconds], height=height, width=width, sound=sound)
      if resolution in stage.keyframed:
        shape |= dict(height=height // 2, width=width // 2, keyframe_scale=2)
        shape |= dict(keyframes=(shape['frames'] - 1) // FPS)
      if stage.refine:
        shape = refined(shape)
      share = plain / len(resolutions) / len(lengths)
      yield 'clips', share, dict(shape, tasks=stage.clip_tasks)
  for task, share in stage.references.items():
    height, width = scale.clips[stage.resolutions[0]]
    shape = dict(frames=scale.frames[stage.seconds[0]], height=height, width=width, sound=sound)
    shape |= scale.slots[task]
    if stage.refine:
      shape = refined(shape)
    yield task, stage.clips * share, dict(shape, tasks={task: 1.0})
  for seconds in lengths:
    shape = dict(frames=0, seconds=float((scale.frames[seconds] - 1) // FPS))
    yield 'sounds', stage.sounds / len(lengths), shape
