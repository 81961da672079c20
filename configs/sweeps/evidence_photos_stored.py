"""evidence_photos with the word vectors of a frozen encoder that has read far more than these captions: 9 runs.

  python -m launch.sweep --sweep=configs/sweeps/evidence_photos_stored.py --set=data.path=DATA \\
    --set=captions.vectors=VECTORS --set=evaluation.data=PROBE --workdir=runs/evidence_photos_stored

Is it the vectors, learnt from 38,400 crops, that keep the words from being read? `no_regulariser` asks the same of the
regularisers. Without words it is evidence_photos' `none`.
"""

from configs.sweeps import evidence_photos, Sweep

VARIANTS = {
    "words": {},
    "shuffled": {"captions.shuffled": True},
    "no_regulariser": {"objective.sparsity": 0.0, "objective.consistency": 0.0},
}


def get_sweep() -> Sweep:
    learned = evidence_photos.get_sweep()
    settings = dict(learned.settings) | {"model.text": "stored"}
    return learned._replace(settings=settings, variants=VARIANTS, baseline="shuffled")
