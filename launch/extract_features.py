"""Writes the frozen features of a prepared dataset to disk, with labels and file names.

  python -m launch.extract_features --encoder=runs/photos --data=data/photos --output=features/photos

Writes .npz files of at most --images_per_shard images each, in the order of the data, and features.json, which says
what they are; tc_jepa/evaluation/extract.py describes both. The encoder is a workdir's newest checkpoint (--step picks
another), a converted folder or a Hugging Face one. All devices are used, and with --distributed those of several hosts,
which share the files. The work is done in OUTPUT.partial, which is renamed to OUTPUT when it is complete; after a kill
the same command resumes it.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from launch import common
from launch import distributed as processes
from tc_jepa.errors import UserError

ENCODER = common.define_workdir("encoder", "A workdir, a converted folder, or a Hugging Face I-JEPA folder.")
STEP = flags.DEFINE_integer("step", None, "Step of a workdir's checkpoint; default: the newest.")
DATA = common.define_path("data", None, "The prepared folder.")
OUTPUT = common.define_path("output", None, "The folder to write. It must not exist yet.")
FEATURES = flags.DEFINE_list("features", ["pooled"], "Any of pooled (mean over patches), patches.")
SPLITS = flags.DEFINE_list("splits", None, "Which splits; default: all.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "In what features are stored.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side in pixels; default: what the encoder was trained on.", 1)
IMAGE_FEATURE = flags.DEFINE_string("image_feature", "image", "The feature of the data that is the image.")
LABEL_FEATURES = flags.DEFINE_list("label_features", [], "Its label features; default: all that are not nested.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images the encoder reads at once, over a host's devices.", 1)
IMAGES_PER_SHARD = flags.DEFINE_integer("images_per_shard", 1024, "Images in a file.", 1)
flags.adopt_module_key_flags(processes)  # --distributed


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("encoder", "data", "output")
    # Imported here, so that --help and a mistyped flag answer at once.
    from tc_jepa.data.prepared import FeatureNames, PreparedSource, splits
    from tc_jepa.distributed import sharding
    from tc_jepa.distributed.processes import all_processes
    from tc_jepa.evaluation import extract
    from tc_jepa.evaluation.encoder import frozen_vit
    from tc_jepa.pretrained import encoder as pretrained
    from tc_jepa.storage.checkpoint import chosen_step, fingerprints
    from tc_jepa.storage.files import as_path, refuse_existing

    logging.set_verbosity(logging.WARNING)
    refuse_existing(Path(OUTPUT.value))
    extract.check_kinds(FEATURES.value)
    held = splits(DATA.value)
    if unknown := [split for split in SPLITS.value or () if split not in held]:
        raise UserError(f"{DATA.value} has no split {', '.join(unknown)}; it holds {', '.join(held)}")
    names = FeatureNames(image=IMAGE_FEATURE.value, labels=tuple(LABEL_FEATURES.value))
    sources = {split: PreparedSource(DATA.value, split, names) for split in SPLITS.value or held}

    processes.start(stops_together=False)
    path = as_path(ENCODER.value)
    step = chosen_step(path, STEP.value) if pretrained.is_run(path) else STEP.value
    weights = pretrained.open_encoder(path, step)
    image_size, patch_size = IMAGE_SIZE.value or weights.image_size, weights.encoder.patch_size
    if image_size % patch_size:
        raise UserError(f"--image_size={image_size} is not divisible by the encoder's patch size, {patch_size}")
    mesh = sharding.local_mesh()
    encoder = frozen_vit(weights.encoder, weights.params, image_size=image_size, batch_size=BATCH_SIZE.value, mesh=mesh)
    about = {"encoder": str(path), "step": step, "weights": extract.digest(fingerprints(weights.params))}
    form = {"kinds": FEATURES.value, "dtype": DTYPE.value, "images_per_shard": IMAGES_PER_SHARD.value}
    about |= {"data": DATA.value}
    extract.extract(encoder, sources, Path(OUTPUT.value), **form, about=about, processes=all_processes())
    images = ", ".join(f"{len(source)} {split}" for split, source in sources.items())
    print(f"{OUTPUT.value}: {' and '.join(FEATURES.value)} features of {images} images")


if __name__ == "__main__":
    common.run(processes.watched(main), processes.leave)
