"""Sound to a WAV of 16 bits."""

import io
import wave

from data_pipelines import record


def to_bytes(samples, sample_rate: int) -> bytes:
  """float in [-1, 1] or int16, [n c]."""
  file = io.BytesIO()
  with wave.open(file, 'wb') as out:
    out.setnchannels(samples.shape[1])
    out.setsampwidth(2)
    out.setframerate(sample_rate)
    out.writeframes(record.to_int16(samples).astype('<i2').tobytes())
  return file.getvalue()
