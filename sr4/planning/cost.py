"""What a stage's volume takes of a slice: days, chips and dollars, from the time of a step."""

# On-demand list prices of late 2025, dollars a chip and hour, in a cheap region and without
# commitment (cloud.google.com/tpu/pricing).  They change, and few pay them: --chip_hour_usd.
CHIP_HOUR_USD = {'v4': 3.22, 'v5e': 1.20, 'v5p': 4.20, 'v6e': 2.70, 'tpu7x': 12.00}


def steps(config) -> dict[str, float]:
  """{bucket: steps that a run takes of it}: its share of the weights, of all steps.

  In configs/skyreels_v4.py a weight is the bucket's volume in Table 1, in steps.
  """
  weights = {name: bucket.get('weight', 1.0) for name, bucket in config['data']['buckets'].items()}
  total = sum(weights.values())
  return {name: config['train']['steps'] * weight / total for name, weight in weights.items()}


def volume(row: dict, steps: float, chips: int, chip_hour_usd: float) -> dict:
  """{steps, samples, days, usd} of a bucket whose step is `row`; no days where it has no time."""
  found = {'steps': steps, 'samples': steps * row['rows'], 'days': None, 'usd': None}
  if row['step_seconds'] is None:
    return found
  hours = steps * row['step_seconds'] / 3600
  return found | {'days': hours / 24, 'usd': hours * chips * chip_hour_usd}
