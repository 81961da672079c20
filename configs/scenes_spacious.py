"""TC-JEPA on spacious scenes: large objects with a theme, crops that are drawn, captioned and labelled anew.

  python -m launch.train --config=configs/scenes_spacious.py --workdir=runs/spacious
  python -m launch.train --config=configs/scenes_spacious.py --config.method.name=supervised --workdir=runs/ceiling

The quickstart on other scenes, evaluated on 5,000 test scenes. The second command trains the same encoder with the
labels: the ceiling for the first.
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.data.scenes_level = "spacious"
    config.evaluation.test_examples = 5000
    return config
