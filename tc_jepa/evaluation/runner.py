"""Runs evaluation tasks on several encoders side by side and gathers what they find.

Scores are one flat mapping. "linear_fast/shape" with "..._low" and "..._high" is a score with its interval (95 %
bootstrap over the test examples); the same keys under "init/", "pixels/" and "compared/" are those of the encoders
beside the evaluated one. "gain_over_init/linear_fast/shape" is the difference with its paired interval, "chance/shape"
what needs no encoder. Scores are fractions: macro mAP for label sets with several classes an image, accuracy for the
others and for "vqa/KIND", mean IoU for "segmentation/NAME", "segmentation_knn/NAME" and "grounding_iou/KIND", pointing
accuracy for "grounding/KIND", recall for "retrieval/captions_K" and "retrieval/images_K", BLEU-4 for
"captioning/bleu_4". Only "captioning/cider", CIDEr-D, is in 0-10.
"""

from collections.abc import Collection, Mapping, Sequence

from tc_jepa.data.sources import Source, TRAIN
from tc_jepa.errors import UserError
from tc_jepa.evaluation import tasks as table
from tc_jepa.evaluation.encoder import FrozenEncoder
from tc_jepa.evaluation.examples import choose, Examples, Views
from tc_jepa.evaluation.features import Arrays, FeatureStore, Part
from tc_jepa.evaluation.scores import difference, Measured
from tc_jepa.evaluation.task import FeatureRequest, Findings, LABELS, MASKS, Task, TaskInputs, TextSide, Writing
from tc_jepa.evaluation.tower import FrozenTower

CONTEXT = "context/"  # prefix of a run's context encoder


def evaluate(
    encoder: FrozenEncoder,
    others: Mapping[str, FrozenEncoder],
    train: Source,
    test: Source,
    names: Collection[str],
    *,
    train_examples: int,
    test_examples: int,
    dense_examples: int,
    views: int = 0,
    store: FeatureStore | None = None,
    context: FrozenEncoder | None = None,
    text_sides: Mapping[str, TextSide | FrozenTower] | None = None,
    writing: Writing | None = None,
) -> Findings:
    """Evaluates an encoder (its keys have no prefix) beside others (prefix "NAME/") on the tasks of these names.

    Tasks are fitted on at most `train_examples` of `train`, those that keep every patch of it on at most
    `dense_examples`; all are tested on at most `test_examples` of `test`. `views` are the random crops of each train
    image for tasks with augmentation. `store` keeps features on disk meanwhile. `context` is the run's context encoder,
    for tasks that read it too. `text_sides` are needed by tasks that read text, by the name of the encoder ("" is the
    evaluated one), `writing` by tasks that write it. Raises UserError where the data lacks labels or masks that are
    needed, where classes differ between the splits, and for too few examples.
    """
    # Where two tasks give the same constant or confusion the first counts, so those fitted on fewer examples come last.
    tasks = sorted((table.load(name) for name in table.TASKS if name in names), key=lambda task: task.dense)
    check_data(tasks, train, test)
    store, text_sides = store or FeatureStore(), text_sides or {}
    encoders = {"": encoder} | {f"{name}/": encoder for name, encoder in others.items()}
    tasks_of = {
        prefix: [task for task in tasks if not task.reads_text or prefix.rstrip("/") in text_sides]
        for prefix in encoders
    }
    if context is not None:
        tasks_of[CONTEXT] = [task for task in tasks if task.context_encoder]
    every = encoders | {CONTEXT: context}
    fitted_on = {
        dense: Examples(train, choose(len(train), dense_examples if dense else train_examples))
        for dense in (False, True)
    }
    tested_on = Examples(test, choose(len(test), test_examples))
    parts = _parts(tasks, fitted_on, tested_on, views)

    findings, measured = Findings(), {}
    with findings.timed("features"):
        _fill(store, every, tasks_of, parts)
    for prefix, turn in tasks_of.items():
        text = text_sides.get(prefix.rstrip("/"))
        # One encoder after another, and a part only as long as it is needed: the features of all would fill the memory.
        held: dict[str, Arrays] = {}
        for number, task in enumerate(turn):
            with findings.timed("features"):
                for part in parts[task.name].values():
                    if part.name not in held:
                        held[part.name] = store.read({prefix: every[prefix]}, part)[prefix]
                features = {name: _by_view(held[part.name], part) for name, part in parts[task.name].items()}
            with findings.timed(task.name):
                side = every[prefix].image_size
                outcome = task.run(TaskInputs(features, fitted_on[task.dense], tested_on, side, text, writing))
            measured |= {f"{prefix}{key}": score for key, score in outcome.scores.items()}
            findings.scores |= {f"{prefix}{key}": value for key, value in outcome.numbers.items()}
            findings.scores = outcome.constants | findings.scores
            if not prefix:
                findings.keep(outcome)
            needed = {part.name for later in turn[number + 1 :] for part in parts[later.name].values()}
            held = {name: arrays for name, arrays in held.items() if name in needed}
            del features
    findings.scores |= with_gains(measured, list(encoders))
    return findings


def check_data(tasks: Sequence[Task], train: Source, test: Source) -> None:
    """Raises UserError where the splits lack what the tasks need, or their classes differ."""
    for need, there in ((LABELS, train.tasks), (MASKS, train.segmentations)):
        lacking = [task.name for task in tasks if need in task.needs and not there]
        if lacking:
            raise UserError(f"{', '.join(lacking)} needs {need}, and the data has none; leave it out of --tasks")
    if dict(train.tasks) != dict(test.tasks) or dict(train.segmentations) != dict(test.segmentations):
        raise UserError("the splits that are fitted and tested on have other classes; prepare them as one dataset")


Parts = Mapping[str, Mapping[str, Part]]  # by task, then by the names in Task.features


def _parts(tasks: Sequence[Task], fitted_on: Mapping[bool, Examples], tested_on: Examples, views: int) -> Parts:
    """The features that each task reads. Tasks that read the same images share a part, which has all their kinds."""
    kinds: dict[tuple[FeatureRequest, bool], dict[str, None]] = {}
    images: dict[str, dict[str, tuple[FeatureRequest, bool]]] = {task.name: {} for task in tasks}
    for task in tasks:
        for name, request in task.features.items():
            if views or not request.augmented:
                images[task.name][name] = request._replace(kinds=()), task.dense and request.split == TRAIN
                kinds.setdefault(images[task.name][name], {}).update(dict.fromkeys(request.kinds))
    parts = {}
    for (request, dense), merged in kinds.items():
        examples = fitted_on[dense] if request.split == TRAIN else tested_on
        parts[request, dense] = _part(request._replace(kinds=tuple(merged)), examples, dense, views)
    return {task: {name: parts[key] for name, key in keys.items()} for task, keys in images.items()}


def _part(request: FeatureRequest, examples: Examples, dense: bool, views: int) -> Part:
    """The part of a request, named by everything that distinguishes it."""
    source, rows = examples.source, examples.rows[: request.at_most]
    crops = views if request.augmented else request.views
    numbers = {"first": request.at_most, "views": crops}
    words = [request.split, *["dense"] * dense, *["whole"] * request.whole, *request.kinds]
    name = "-".join(words + [f"{word}{number}" for word, number in numbers.items() if number])
    if crops:
        source = Views(source, rows, crops)
        rows = range(len(source))
    return Part(source, rows, request.kinds, name, request.whole, crops)


def _fill(
    store: FeatureStore, encoders: Mapping[str, FrozenEncoder], tasks_of: Mapping[str, Sequence[Task]], parts: Parts
) -> None:
    """Computes every part for all encoders that need it, so that each image is read once for all of them."""
    needing: dict[str, tuple[Part, dict[str, FrozenEncoder]]] = {}
    for prefix, tasks in tasks_of.items():
        for part in (part for task in tasks for part in parts[task.name].values()):
            needing.setdefault(part.name, (part, {}))[1][prefix] = encoders[prefix]
    for part, group in needing.values():
        store.fill(group, part)


def _by_view(arrays: Arrays, part: Part) -> Arrays:
    """Features of random views with an axis for the views: [images, views, ...]; others as they are."""
    return {k: x.reshape(-1, part.views, *x.shape[1:]) for k, x in arrays.items()} if part.views else arrays


def with_gains(measured: Mapping[str, Measured], prefixes: Sequence[str]) -> dict[str, float]:
    """All scores with their intervals, and the evaluated encoder's gains over the others' scores of the same name."""
    gains = {
        f"gain_over_{prefix}{key}": difference(score, measured[f"{prefix}{key}"])
        for prefix in filter(None, prefixes)
        for key, score in measured.items()
        if f"{prefix}{key}" in measured
    }
    results = {}
    for key, score in {**measured, **gains}.items():
        low, high = score.interval
        results |= {key: score.value, f"{key}_low": low, f"{key}_high": high}
    return results
