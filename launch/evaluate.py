"""Evaluates a frozen encoder beside the same encoder at initialisation and raw pixels (--baselines=false: alone).

  python -m launch.evaluate --encoder=runs/quickstart [--data=scenes] [--tasks=knn,linear_fast,rank] [--step=600]
  python -m launch.evaluate --encoder=runs/scenes_hard --tasks=segmentation,grounding
  python -m launch.evaluate --encoder=weights/vith14 --data=data/photos --compare=weights/vitl16
  python -m launch.evaluate --encoder=weights/vith14 --data=TFDS_FOLDER --set=data.mask_feature=segmentation_mask

The encoder is that of a training run, of a converted folder (launch.convert) or of a Hugging Face I-JEPA folder. So is
the one of --compare, which is evaluated on the same examples, with a paired bootstrap of the difference.

Writes results.md (which is also printed), results.json, pictures, and confusions as CSV to --output, and replaces the
files that an earlier results.json there lists. Features are kept in OUTPUT/features.partial meanwhile; the same command
resumes from them after a kill. For results in a bucket, which are those of a workdir there without --output, they are
kept in a temporary folder of this machine. The keys `evaluation.*` of the run's configuration say how many examples are
read and how many at once; for a folder they have the defaults of configs/base.py. --set changes them, the split to test
on (evaluation.test_split), and the names of features of data that is not the run's own: data.image_feature,
data.label_features, data.mask_feature.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
import shlex
import tempfile
from typing import Any, NamedTuple

from absl import flags, logging

from configs import base
from launch import common, setting
from launch import distributed as processes
from tc_jepa.data.sources import SCENES, TRAIN
from tc_jepa.errors import UserError
from tc_jepa.evaluation import tasks as table
from tc_jepa.storage.files import as_path, in_bucket

DATA_KEYS = ("data.image_feature", "data.label_features", "data.mask_feature")
SIZES = ("train_examples", "test_examples", "dense_examples", "views")  # of the group evaluation

ENCODER = common.define_workdir("encoder", "Workdir of a training run, or a folder with an encoder.")
DATA = common.define_path(
    "data", None, f"{SCENES!r}, or a prepared folder; default: a run's evaluation.data, or its own data."
)
TASKS = flags.DEFINE_list(
    "tasks",
    None,
    "Tasks, separated by commas; default: a run's evaluation.tasks. "
    + "; ".join(f"{name} = {about}" for name, about in table.TASKS.items()),
)
COMPARE = common.define_workdir("compare", "Another encoder to evaluate beside it: a workdir or a folder.")
BASELINES = flags.DEFINE_bool("baselines", True, "Also evaluate the encoder at initialisation, and pixels.")
STEP = flags.DEFINE_integer("step", None, "Step of a run's checkpoint; default: the newest.")
OUTPUT = common.define_path("output", None, "Directory of the results; default: ENCODER/eval/STEP, or ENCODER/eval.")
flags.adopt_module_key_flags(setting)  # --set
flags.adopt_module_key_flags(processes)  # --distributed


class Opened(NamedTuple):
    """An encoder that a flag names."""

    path: Path
    step: int | None  # None for a folder
    weights: Any  # convert.weights.EncoderWeights

    @property
    def about(self) -> str:
        return str(self.path) if self.step is None else f"{self.path}, step {self.step}"


def main(argv: Sequence[str]) -> None:
    del argv
    if ENCODER.value is None:
        raise UserError("give --encoder=PATH, the --workdir of a training run or a folder with an encoder")
    if OUTPUT.value is not None and Path(OUTPUT.value).is_file():
        raise UserError(f"--output={OUTPUT.value} is a file; give a directory")
    # Imported here, so that --help and a mistyped flag answer at once.
    from tc_jepa.config import data
    from tc_jepa.distributed.processes import is_first
    from tc_jepa.evaluation.extract import digest
    from tc_jepa.evaluation.features import FeatureStore
    from tc_jepa.evaluation.runner import evaluate

    logging.set_verbosity(logging.WARNING)
    processes.start(stops_together=False)
    opened = open_encoder(ENCODER.value, STEP.value)
    config = folder_config(opened.weights) if opened.step is None else common.run_config(opened.path)
    config = data.on_data(config, DATA.value or config.evaluation.data)
    set_keys(config)
    trained_size = config.image.size
    config.image.size = side_of(opened.weights, config.image.size, config.evaluation.image_size)
    test_split = data.test_split(config)
    train, test = data.source(config, TRAIN), data.source(config, test_split)
    names = choose_tasks(
        config, train, test, is_run=opened.step is not None, other_size=config.image.size != trained_size
    )
    compared = None if COMPARE.value is None else open_encoder(COMPARE.value, None)
    encoders, context = frozen_encoders(config, opened, compared)

    output = as_path(OUTPUT.value or opened.path / "eval" / ("" if opened.step is None else str(opened.step)))
    sizes = {name: config.evaluation[name] for name in SIZES}
    about = about_results(config, opened, compared) | {
        "tested_on": test_split,
        "available": {"train": len(train), test_split: len(test)},
        **sizes,
    }
    contents = digest(data.dataset(config).identity())
    written = writing(config, names)  # before the store, which makes a folder
    store = FeatureStore(folder_of_features(output), about | {"contents": contents})
    found = evaluate(
        encoders.pop(""),
        encoders,
        train,
        test,
        names,
        **sizes,
        store=store,
        context=context,
        text_sides=text_sides(opened, test, names),
        writing=written,
    )
    about["command"] = command_of(opened, names, output)
    if is_first():
        print(write(output, found, about, header_of(config, about, opened, compared), train, test))
    store.close()
    print(f"written to {output}")
    if opened.step is not None and OUTPUT.value is None:
        print(f"python -m launch.report --workdir={opened.path} puts these scores into the run's page")


def folder_of_features(output: Path) -> Path:
    """Where features are kept: beside the results, or for results in a bucket in a new folder on this machine."""
    import jax

    if not in_bucket(output):
        return output / "features.partial"
    if jax.process_count() > 1:
        raise UserError(
            f"several processes cannot share features in {output}; give --output=DIR, a local or mounted folder that "
            "all of them see",
            about="output",
        )
    return Path(tempfile.mkdtemp(prefix="features."))


def open_encoder(path: str, step: int | None) -> Opened:
    """The encoder of a workdir, at a step or the newest, or of a folder."""
    from tc_jepa.pretrained import encoder as pretrained
    from tc_jepa.storage.checkpoint import chosen_step

    chosen = chosen_step(as_path(path), step) if pretrained.is_run(path) else None
    if chosen is not None:
        common.run_config(as_path(path))  # which names a damaged key, as models that are built from it cannot
    return Opened(as_path(path), chosen, pretrained.open_encoder(path, step if chosen is None else chosen))


def about_results(config, opened: Opened, compared: Opened | None) -> dict[str, object]:
    """What identifies the encoders and the data, for results.json and for the folder of features."""
    from tc_jepa.evaluation.extract import digest
    from tc_jepa.storage.checkpoint import fingerprints

    return {
        "encoder": str(opened.path),
        "step": opened.step,
        "weights": digest(fingerprints(opened.weights.params)),
        "compared": COMPARE.value,
        "compared_step": compared and compared.step,
        "compared_weights": compared and digest(fingerprints(compared.weights.params)),
        "data": config.data.path or SCENES,
        "features": list(setting.SET.value),
        "image_size": config.image.size,
    }


def header_of(config, about: Mapping[str, Any], opened: Opened, compared: Opened | None) -> dict[str, object]:
    """The lines above the tables of results.md."""
    split, available = about["tested_on"], about["available"]
    fitted = [min(available["train"], about[name]) for name in ("train_examples", "dense_examples")]
    size, seen = opened.weights.encoder.size, f"patch {config.model.patch_size}, {config.image.size} px"
    kind = f"width {size.width}, depth {size.depth}, {seen}"
    if opened.step is not None:
        kind = f"{config.model.encoder}, {seen}, seed {config.train.seed}"
    return {
        "encoder": f"{opened.about} ({kind})",
        **({"compared": compared.about} if compared else {}),
        "data": about["data"],
        "probes are fitted on": f"{fitted[0]} examples of split train, tasks that read every patch on {fitted[1]}",
        "tested on": f"{min(available[split], about['test_examples'])} examples of split {split}",
        "command": f"`{about['command']}`",
    }


def write(output: Path, found, about: dict, header: dict, train, test) -> str:
    """Writes results, then the pictures, which take longer and may fail; returns the report, which names them."""
    from tc_jepa.evaluation import results
    from tc_jepa.report import evaluated

    results.write_results(output, found, about, results.render(found, test.tasks, header))
    pictures = evaluated.draw(found, train, test, output)
    if pictures:
        header = header | {"pictures": ", ".join(picture.name for picture in pictures)}
    report = results.render(found, test.tasks, header)
    results.write_results(output, found, about, report)
    return report


def command_of(opened: Opened, names: Sequence[str], output: Path) -> str:
    """The command, with the step and the tasks that were chosen."""
    given = {"encoder": opened.path, "step": opened.step, "data": DATA.value, "tasks": ",".join(names)}
    given |= {"compare": COMPARE.value, "output": output}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    words += [] if BASELINES.value else ["--baselines=false"]
    words += [f"--set={text}" for text in setting.SET.value]
    return shlex.join(["python", "-m", "launch.evaluate", *words])


def folder_config(weights):
    """The default configuration for an encoder without a run, with its image and patch size."""
    if DATA.value is None:
        raise UserError(
            f"--encoder={ENCODER.value} is not a training run and has no data; give --data={SCENES} or a folder"
        )
    config = base.get_config()
    config.image.size, config.model.patch_size = weights.image_size, weights.encoder.patch_size
    return config


def set_keys(config) -> None:
    """Applies --set. Only keys that do not change the encoder can be set: what is read, and how much of it."""
    own_flags = {"evaluation.data": "--data", "evaluation.tasks": "--tasks", "data.path": "--data"}
    for text in setting.SET.value:
        name, value = setting.assignment(text)
        if name in own_flags:
            raise UserError(f"--set={text}: give {own_flags[name]} instead")
        if not name.startswith("evaluation.") and name not in DATA_KEYS:
            raise UserError(f"--set={text}: only evaluation.* and {', '.join(DATA_KEYS)} can be set here")
        if name in DATA_KEYS and not config.data.path:
            raise UserError(f"--set={text} names a feature of --data, which is not a prepared folder; leave it out")
        setting.apply(config, {name: value})
    if setting.SET.value:
        base.expand_paths(config)


def side_of(weights, trained: int, asked: int) -> int:
    """The side in pixels of the images that an encoder reads. UserError where its patch size does not divide it."""
    side, patch = asked or trained, weights.encoder.patch_size
    if side % patch:
        raise UserError(f"evaluation.image_size={side} is not divisible by the patch size {patch}; give a multiple")
    return side


def choose_tasks(config, train, test, *, is_run: bool, other_size: bool) -> list[str]:
    """The tasks of --tasks; or the run's own, without those that lack something in the run or the data."""
    from tc_jepa.config import data
    from tc_jepa.data.class_phrases import named_segmentation
    from tc_jepa.evaluation.examples import any_captions, any_questions
    from tc_jepa.evaluation.task import CAPTIONS, LABELS, MASKS, QUESTIONS, TEST_CAPTIONS, TOWER, VOCABULARY, WORDS

    names = TASKS.value if TASKS.value is not None else config.evaluation.tasks.split(",")
    lacking = {}  # need -> why it is not there
    if not test.tasks:
        lacking[LABELS] = "the data has no labels"
    if not test.segmentations:
        lacking[MASKS] = "the data has no masks, or under another name (--set=data.mask_feature=NAME)"
    if not is_run or config.method.name != "jepa" or config.model.conditioner != "word_cross_attention":
        lacking[WORDS] = "no predictor attends to words here"
    elif config.model.text == "stored":
        lacking[WORDS] = "the run read stored vectors, not texts"
    elif not hasattr(test, "phrases") and named_segmentation(test) is None:
        lacking[WORDS] = "the data does not say which words name which object: it has no masks of named classes"
    elif other_size:
        lacking[WORDS] = "its predictor has one grid of patches, and evaluation.image_size gives another"
    if not is_run or config.method.name != "contrastive":
        lacking[TOWER] = "the encoder has no text tower, which only a run of method.name=contrastive trains"
    if not data.has_vocabulary(config):
        lacking[VOCABULARY] = "there is no vocabulary to write with (--set=evaluation.vocabulary=FILE)"
    table.check(names)
    needed = {need for name in names for need in table.load(name).needs}
    chosen = config.evaluation
    both = {"train": (train, chosen.dense_examples), "test": (test, chosen.test_examples)}
    texts = {CAPTIONS: (any_captions, both), TEST_CAPTIONS: (any_captions, ["test"]), QUESTIONS: (any_questions, both)}
    for need, (there, splits) in texts.items():
        if need in needed and (without := [split for split in splits if not there(*both[split])]):
            lacking[need] = f"no {without[0]} image has {'questions' if need == QUESTIONS else 'captions'}"
    return table.possible(names, lacking, required=TASKS.value is not None) or ["rank"]


def text_sides(opened: Opened, test, names: Sequence[str]) -> dict[str, Any]:
    """For tasks that read text: the run's text tower, or its predictor and text encoder with the phrases of the test
    data; and with --baselines the same at initialisation."""
    from tc_jepa.data.class_phrases import ClassPhrases, named_segmentation
    from tc_jepa.evaluation.reading import FrozenReader
    from tc_jepa.evaluation.task import TextSide, TOWER
    from tc_jepa.evaluation.tower import FrozenTower
    from tc_jepa.experiment.run import open_run

    reading = [task for task in map(table.load, names) if task.reads_text]
    if not reading:
        return {}
    run = open_run(opened.path, common.run_config(opened.path), opened.step)
    runs = {"": run} | ({"init": run.at_initialisation()} if BASELINES.value else {})
    if TOWER in reading[0].needs:
        return {
            name: FrozenTower(one.experiment.method, one.params, run.experiment.reader) for name, one in runs.items()
        }
    source = test if hasattr(test, "phrases") else ClassPhrases(test, named_segmentation(test))
    readers = {name: FrozenReader(one.experiment.method, one.params, one.extra) for name, one in runs.items()}
    return {name: TextSide(reader, run.experiment.reader, source) for name, reader in readers.items()}


def writing(config, names: Sequence[str]):
    """With what texts are written, for tasks that do."""
    from tc_jepa.config import data
    from tc_jepa.evaluation.task import DecoderSize, VOCABULARY, Writing

    if all(VOCABULARY not in table.load(name).needs for name in names):
        return None
    chosen = config.evaluation
    size = DecoderSize(chosen.decoder_depth, chosen.decoder_width, chosen.decoder_steps)
    return Writing(size, data.writing_tokenizer(config))


def frozen_encoders(config, opened: Opened, compared: Opened | None):
    """The encoders by name: the one to evaluate (""), with --baselines itself at initialisation and pixels, and that of
    --compare; then a run's context encoder, where another one is evaluated."""
    import jax

    from tc_jepa.config import methods
    from tc_jepa.distributed import sharding
    from tc_jepa.evaluation.encoder import frozen_pixels, frozen_vit
    from tc_jepa.methods.method import init_encoder
    from tc_jepa.pretrained.encoder import restored_encoder

    weights, size = opened.weights, config.image.size
    shared = {"image_size": size, "batch_size": config.evaluation.batch_size, "mesh": sharding.local_mesh()}
    encoders = {"": frozen_vit(weights.encoder, weights.params, **shared)}
    if BASELINES.value:
        untrained = weights.encoder.clone(stored_positions=False)
        initial = jax.jit(lambda: init_encoder(untrained, (size, size, 3), jax.random.key(config.train.seed)))()
        encoders["init"] = frozen_vit(untrained, initial, **shared)
        encoders["pixels"] = frozen_pixels(patch_size=config.model.patch_size, **shared)
    if compared is not None:  # on images of its own size unless evaluation.image_size is given
        other = compared.weights
        side = side_of(other, other.image_size, config.evaluation.image_size)
        encoders["compared"] = frozen_vit(other.encoder, other.params, **shared | {"image_size": side})
    context = None
    if opened.step is not None and methods.chosen(config).averages_encoder(config):
        params, _ = restored_encoder(opened.path, opened.step, weights.encoder, size, averaged=False)
        context = frozen_vit(weights.encoder, params, **shared)
    return encoders, context


if __name__ == "__main__":
    common.run(processes.watched(main), processes.leave)
