"""TC-JEPA on spacious scenes: large objects with a theme, crops that are drawn, captioned and labelled anew.

  python -m launch.train --config=configs/scenes_spacious.py --workdir=runs/spacious
  python -m launch.train --config=configs/scenes_spacious.py --config.method.name=supervised \\
    --config.supervised.tasks="('shape', 'colour', 'count')" --workdir=runs/ceiling
  python -m launch.evaluate --encoder=runs/ceiling --tasks=linear_fast,knn --set=evaluation.train_examples=5000

scenes_standard.py on other scenes, evaluated on 5,000 test scenes. The second command trains the same encoder with the
labels: the ceiling for the first. Linear probe / 20 nearest neighbours in percent, by the third command (seed 0,
2026-11-30):

                   ceiling       initialisation  pixels        chance
  shape, mAP       79.4 / 73.9   29.9 / 21.1     31.8 / 42.1   18.9
  colour, mAP      99.9 / 99.5   67.9 / 33.9     58.0 / 61.2   19.0
  count, accuracy  87.3 / 80.8   68.3 / 57.9     65.0 / 57.6   41.5
"""

from configs import scenes_standard


def get_config():
    config = scenes_standard.get_config()
    config.data.scenes_level = "spacious"
    config.evaluation.test_examples = 5000
    return config
