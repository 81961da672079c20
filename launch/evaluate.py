"""Judge an encoder beside the same encoder at initialisation and raw pixels, on frozen features.

  python -m launch.evaluate --encoder=runs/quickstart [--data=scenes] [--tasks=knn,linear_fast,rank] [--step=600]
  python -m launch.evaluate --encoder=runs/scenes_hard --tasks=segmentation,grounding
  python -m launch.evaluate --encoder=weights/vith14 --data=data/photos --compare=weights/vitl16
  python -m launch.evaluate --encoder=weights/vith14 --data=TFDS_FOLDER --set=data.mask_feature=segmentation_mask

The encoder is a training run's, or one in a converted folder (launch.convert) or a Hugging Face I-JEPA folder; so is
the one of --compare, which is judged on the same examples, with a paired bootstrap of the difference. segmentation
needs data with masks; grounding needs a run whose predictor attends to words, on scenes or masks of named classes.

Writes results.md (printed too), results.json, pictures, and confusions as CSV into --output, in place of those that an
earlier results.json there names. Meanwhile features lie in OUTPUT/features.partial: a command that was cut short goes
on from them. How many examples are read, and how many at once, stands in the run's configuration under `evaluation`;
for a folder those are the defaults of configs/base.py. --set changes them, and names the split to test on and the
features of data that is not the run's own, where they have not the usual names: evaluation.test_split,
data.image_feature, .label_features, .mask_feature.
"""

from collections.abc import Sequence
from pathlib import Path
import shlex

from absl import flags, logging

from configs import base
from launch import common, setting
from launch import distributed as processes
from tc_jepa.data.sources import SCENES
from tc_jepa.errors import UserError

DATA_KEYS = ("data.image_feature", "data.label_features", "data.mask_feature")

ENCODER = common.define_path("encoder", None, "Workdir of a training run, or a folder with an encoder.")
DATA = common.define_path(
    "data", None, f"{SCENES!r}, or a prepared folder; default: a run's evaluation.data, or its own."
)
TASKS = flags.DEFINE_list(
    "tasks", None, f"Any of {', '.join(common.EVALUATION_TASKS)}; default: a run's evaluation.tasks."
)
COMPARE = common.define_path("compare", None, "Another encoder to judge beside it: a workdir or a folder.")
STEP = flags.DEFINE_integer("step", None, "Step of a run's checkpoint; default: the newest.")
OUTPUT = common.define_path("output", None, "Directory of the results; default: ENCODER/eval/STEP, or ENCODER/eval.")
flags.adopt_module_key_flags(setting)  # --set
flags.adopt_module_key_flags(processes)  # --distributed


def main(argv: Sequence[str]) -> None:
    del argv
    if ENCODER.value is None:
        raise UserError("give --encoder=PATH, the --workdir of a training run or a folder with an encoder")
    if OUTPUT.value is not None and Path(OUTPUT.value).is_file():
        raise UserError(f"--output={OUTPUT.value} is a file; give a directory")
    # Imported here, so that --help and a mistyped flag answer at once.
    from tc_jepa.config import data as config_data
    from tc_jepa.data.class_phrases import ClassPhrases, named_segmentation
    from tc_jepa.data.prepared import data_identity
    from tc_jepa.distributed.processes import is_first
    from tc_jepa.evaluation import results
    from tc_jepa.evaluation import runner as evaluate
    from tc_jepa.evaluation.encoder import frozen_vit
    from tc_jepa.evaluation.extract import digest
    from tc_jepa.evaluation.features import FeatureStore
    from tc_jepa.pretrained import encoder as pretrained
    from tc_jepa.storage.checkpoint import chosen_step, fingerprints

    logging.set_verbosity(logging.WARNING)
    processes.start(stops_together=False)
    path = Path(ENCODER.value)
    step = chosen_step(path, STEP.value) if pretrained.is_run(path) else None
    weights = pretrained.open_encoder(path, STEP.value if step is None else step)
    config = folder_config(weights) if step is None else common.run_config(path)
    config = config_data.on_data(config, DATA.value or config.evaluation.data)
    set_keys(config)
    trained_size = config.image.size
    config.image.size = side_of(weights, config.image.size, config.evaluation.image_size)
    train, test, test_split = open_data(config)
    tasks = choose_tasks(config, test, is_run=step is not None, other_size=config.image.size != trained_size)
    encoders, context = frozen_encoders(config, weights, path if step is not None else None, step)
    other_step = other_weights = None
    if COMPARE.value is not None:
        other_step = chosen_step(Path(COMPARE.value), None) if pretrained.is_run(COMPARE.value) else None
        other = pretrained.open_encoder(COMPARE.value, other_step)
        other_weights = digest(fingerprints(other.params))
        side = side_of(other, other.image_size, config.evaluation.image_size)
        settings = shared_settings(config) | {"image_size": side}
        encoders[results.COMPARED] = frozen_vit(other.encoder, other.params, **settings)

    output = Path(OUTPUT.value or path / "eval" / ("" if step is None else str(step)))
    data = config.data.path or SCENES
    sizes = {name: config.evaluation[name] for name in ("train_examples", "test_examples", "dense_examples", "views")}
    about = {
        "encoder": str(path),
        "step": step,
        "weights": digest(fingerprints(weights.params)),
        "compared": COMPARE.value,
        "compared_step": other_step,
        "compared_weights": other_weights,
        "data": data,
        "features": list(setting.SET.value),
        "tested_on": test_split,
        "available": {"train": len(train), test_split: len(test)},
        "image_size": config.image.size,
        **sizes,
    }
    contents = digest(data_identity(config.data.path)) if config.data.path else SCENES
    store = FeatureStore(output / "features.partial", about | {"contents": contents})
    judged = encoders.pop("")
    found = evaluate.evaluate(judged, encoders, train, test, tasks, **sizes, store=store, context=context)
    if evaluate.GROUNDING in tasks:
        with found.timed(evaluate.GROUNDING):
            readers, tokenizer = word_readers(path, step)
            grounded = test if hasattr(test, "phrases") else ClassPhrases(test, named_segmentation(test))
            found.scores |= evaluate.ground(
                readers, tokenizer, grounded, image_size=config.image.size, test_examples=sizes["test_examples"]
            )

    about["command"] = command_of(path, step, tasks, output)
    header = {
        "encoder": name_of(path, step, weights, config),
        **({"compared": compared_name(other_step)} if COMPARE.value else {}),
        "data": data,
        "probes are fitted on": f"{min(len(train), sizes['train_examples'])} examples of split train, attentive and "
        f"segmentation on {min(len(train), sizes['dense_examples'])}",
        "tested on": f"{min(len(test), sizes['test_examples'])} examples of split {test_split}",
        "command": f"`{about['command']}`",
    }
    if is_first():
        print(write(output, found, about, header, train, test))
    store.close()
    print(f"written to {output}")
    if step is not None and OUTPUT.value is None:
        print(f"python -m launch.report --workdir={path} puts these scores into the run's page")


def write(output: Path, found, about: dict, header: dict, train, test) -> str:
    """Results, and the pictures that need longer and may fail; then the report that names them, which is returned."""
    from tc_jepa.evaluation import results
    from tc_jepa.report import evaluated

    results.write_results(output, found, about, results.render(found, test.tasks, header))
    pictures = evaluated.draw(found, train, test, output)
    if pictures:
        header = header | {"pictures": ", ".join(picture.name for picture in pictures)}
    report = results.render(found, test.tasks, header)
    results.write_results(output, found, about, report)
    return report


def command_of(path: Path, step: int | None, tasks: Sequence[str], output: Path) -> str:
    """What was asked for, with the step and the tasks that it came to."""
    flags_given = {
        "encoder": path,
        "step": step,
        "data": DATA.value,
        "tasks": ",".join(tasks),
        "compare": COMPARE.value,
        "output": output,
    }
    words = [f"--{name}={value}" for name, value in flags_given.items() if value is not None]
    words += [f"--set={text}" for text in setting.SET.value]
    return shlex.join(["python", "-m", "launch.evaluate", *words])


def compared_name(step: int | None) -> str:
    return COMPARE.value if step is None else f"{COMPARE.value}, step {step}"


def name_of(path: Path, step: int | None, weights, config) -> str:
    """The encoder in a line of the table's header."""
    size, seen = weights.encoder.size, f"patch {config.model.patch_size}, {config.image.size} px"
    if step is None:
        return f"{path} (width {size.width}, depth {size.depth}, {seen})"
    return f"{path}, step {step} ({config.model.encoder}, {seen}, seed {config.train.seed})"


def folder_config(weights):
    """The defaults, for an encoder that comes without a run: on images of its own size, with --data."""
    if DATA.value is None:
        raise UserError(
            f"{ENCODER.value} is no training run and has no data of its own; give --data={SCENES} or a folder"
        )
    config = base.get_config()
    config.image.size, config.model.patch_size = weights.image_size, weights.encoder.patch_size
    return config


def set_keys(config) -> None:
    """Applies --set, of keys that say what is read and how much, which changes nothing of the encoder."""
    own_flags = {"evaluation.data": "--data", "evaluation.tasks": "--tasks", "data.path": "--data"}
    for text in setting.SET.value:
        name, value = setting.assignment(text)
        if name in own_flags:
            raise UserError(f"--set={text}: {own_flags[name]} says that")
        if not name.startswith("evaluation.") and name not in DATA_KEYS:
            raise UserError(f"--set={text}: only evaluation.* and {', '.join(DATA_KEYS)} can be set here")
        if name in DATA_KEYS and not config.data.path:
            raise UserError(f"--set={text} names a feature of --data, which is no prepared folder; leave it out")
        setting.apply(config, {name: value})


def side_of(weights, trained: int, asked: int) -> int:
    """The side in pixels of the images that an encoder is judged on. UserError where its patches do not fill them."""
    side, patch = asked or trained, weights.encoder.patch_size
    if side % patch:
        raise UserError(f"evaluation.image_size={side} is not divisible by the patch size {patch}; give a multiple")
    return side


def open_data(config):
    """The sources to fit and to test on, and the name of the split that is tested on."""
    from tc_jepa.config import data as config_data
    from tc_jepa.data.sources import TRAIN

    test_split = config_data.test_split(config)
    return config_data.source(config, TRAIN), config_data.source(config, test_split), test_split


def choose_tasks(config, test, *, is_run: bool, other_size: bool) -> list[str]:
    """The tasks asked for; or the run's own, as far as data and run have what they need. UserError for the others."""
    from tc_jepa.data.class_phrases import named_segmentation
    from tc_jepa.evaluation import runner as evaluate

    tasks = TASKS.value if TASKS.value is not None else config.evaluation.tasks.split(",")
    evaluate.check_protocols(tasks)
    lacking = {} if test.tasks else dict.fromkeys(evaluate.PROBES, "the data has no labels")
    if not test.segmentations:
        lacking[evaluate.SEGMENTATION] = "the data has no masks, or under another name (--set=data.mask_feature=NAME)"
    if not is_run or config.model.conditioner != "word_cross_attention":
        lacking[evaluate.GROUNDING] = "no predictor attends to words here"
    elif config.model.text == "stored":
        lacking[evaluate.GROUNDING] = "the run read stored vectors, not texts"
    elif not hasattr(test, "phrases") and named_segmentation(test) is None:
        lacking[evaluate.GROUNDING] = "the data does not say which words name which object: no masks of named classes"
    elif other_size:
        lacking[evaluate.GROUNDING] = "its predictor knows one grid of patches (evaluation.image_size is another)"
    missing = [task for task in tasks if task in lacking]
    if missing and TASKS.value is not None:
        raise UserError(f"--tasks={missing[0]}: {lacking[missing[0]]}; leave it out")
    for reason in dict.fromkeys(lacking[task] for task in missing):
        names = ", ".join(task for task in missing if lacking[task] == reason)
        logging.warning("%s: left out, because %s", names, reason)
    return [task for task in tasks if task not in lacking] or [evaluate.RANK]


def word_readers(workdir: Path, step: int):
    """The run's text side, the same at initialisation, and its tokenizer."""
    from tc_jepa.evaluation.reading import FrozenReader
    from tc_jepa.experiment.run import open_run

    run = open_run(workdir, common.run_config(workdir), step)
    runs = {"": run, "init/": run.at_initialisation()}
    readers = {name: FrozenReader(one.experiment.method, one.params, one.extra) for name, one in runs.items()}
    return readers, run.experiment.reader


def frozen_encoders(config, weights, workdir: Path | None, step: int | None):
    """The encoder to judge (named "") and its baselines, itself at initialisation and pixels; and a run's context
    encoder, where another one is judged."""
    import jax

    from tc_jepa.config import methods
    from tc_jepa.evaluation.encoder import frozen_pixels, frozen_vit
    from tc_jepa.methods.method import init_encoder
    from tc_jepa.pretrained.encoder import restored_encoder

    shared = shared_settings(config)
    size = config.image.size
    untrained = weights.encoder.clone(stored_positions=False)
    initial = jax.jit(lambda: init_encoder(untrained, (size, size, 3), jax.random.key(config.train.seed)))()
    encoders = {
        "": frozen_vit(weights.encoder, weights.params, **shared),
        "init": frozen_vit(untrained, initial, **shared),
        "pixels": frozen_pixels(patch_size=config.model.patch_size, **shared),
    }
    context = None
    if workdir is not None and methods.chosen(config).averages_encoder(config):
        params, _ = restored_encoder(workdir, step, weights.encoder, size, averaged=False)
        context = frozen_vit(weights.encoder, params, **shared)
    return encoders, context


def shared_settings(config) -> dict:
    from tc_jepa.distributed import sharding

    mesh = sharding.local_mesh()
    return {"image_size": config.image.size, "batch_size": config.evaluation.batch_size, "mesh": mesh}


if __name__ == "__main__":
    common.run(main, processes.leave)
