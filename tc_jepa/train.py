"""The train loop: everything that is done around the pure step."""

import contextlib
import functools
import json
from pathlib import Path
import signal
import sys
from typing import Any

from absl import logging
import grain
import jax
from jax.experimental import multihost_utils
import ml_collections

from tc_jepa.config import build
from tc_jepa.data import pipeline
from tc_jepa.data.sources import Captioned
from tc_jepa.distributed import sharding
from tc_jepa.distributed.processes import is_first, wait_for_all
from tc_jepa.errors import UserError
from tc_jepa.masking import MaskSampler
from tc_jepa.monitoring import held_out as monitor
from tc_jepa.monitoring import tasks as online
from tc_jepa.monitoring.progress import Progress
from tc_jepa.optimizer import adamw
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.pretrained.warm_start import warm_start
from tc_jepa.state import initial_state, TrainState
from tc_jepa.step import train_step
from tc_jepa.storage import run_data
from tc_jepa.storage.checkpoint import Checkpoints, CONFIG_FILE, saved_steps
from tc_jepa.storage.files import replace_text

HELD_OUT_SEED = 0  # the same held-out crops, captions and masks in every run


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Trains to config.train.steps, from the newest checkpoint in `workdir` where there is one.

    Expects a validated configuration that the workdir agrees with. Raises UserError for bad data or devices before
    anything is written, and for a loss that is no longer finite. After SIGTERM, or Ctrl-C in a single process, it
    finishes the step, saves, and exits with 128 + the signal's number.
    """
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(mesh, config.train.batch_size, "train.batch_size")
    words = build.word_folders(config)
    data, resumed = build.run_data(config, words), bool(saved_steps(workdir))
    if resumed:
        run_data.check_data(workdir, data)
    source, reader = build.training_source(config, words), build.caption_reader(config, words)
    augment, masks = build.augment(config, reader), build.masks(config)
    text_encoder, frozen = build.text_encoder(config, reader)
    frozen = sharding.put_parameters(mesh, frozen)
    constrain = sharding.constrain_to(mesh)
    teacher, teacher_params = pretrained.teacher(config, constrain)
    teacher_params = sharding.put_parameters(mesh, teacher_params)
    networks = build.networks(config, text_encoder, teacher, constrain)
    objective, schedules = build.objective(config), build.schedules(config)
    optimizer = adamw(schedules, config.optimizer.beta1, config.optimizer.beta2, config.optimizer.epsilon)

    judge = online.judge(config)
    example = pipeline.example(source, augment, masks)
    begin = functools.partial(initial_state, networks, example, optimizer, config.train.seed)
    abstract = jax.eval_shape(begin, frozen, teacher_params)
    layout = sharding.parameter_sharding(mesh, abstract)
    given = None
    if config.train.init_from and not resumed:
        given = warm_start(config, abstract.params, reader)
    step_function = jax.jit(
        functools.partial(
            train_step,
            networks=networks,
            objective=objective,
            optimizer=optimizer,
            schedules=schedules,
            seed=config.train.seed,
        ),
        in_shardings=(layout, sharding.batch_sharding(mesh), None),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    look_function = jax.jit(
        functools.partial(monitor.look, networks=networks, objective=objective),
        in_shardings=(layout.params, layout.target_params, None, sharding.batch_sharding(mesh), None, None),
        out_shardings=sharding.replicated(mesh),
    )

    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        replace_text(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
        run_data.record_data(workdir, data, resumed=resumed)
    wait_for_all("workdir")
    checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
    start = checkpoints.latest() or 0
    if start >= config.train.steps:
        checkpoints.close()
        print(f"{workdir} is trained to step {start} already: nothing to do")
        return
    if start:
        state = checkpoints.restore(start, _placed(abstract, layout))
    else:
        if given:
            print(given.report, flush=True)
        given_params = sharding.put_parameters(mesh, given.params if given else None)
        state = jax.jit(begin, out_shardings=layout)(frozen, teacher_params, given_params)
    print(
        f"{'resuming' if start else 'training'} in {workdir} from step {start} of {config.train.steps} "
        f"on {mesh.size} {jax.devices()[0].platform} device(s): {_parameter_counts(abstract)}; {len(source)} images",
        flush=True,
    )

    held_out = _held_out_batches(config, build.held_out_source(config, words), augment, masks, mesh)

    def look(state: TrainState) -> dict[str, float]:
        looks = []
        for batch in held_out():
            batch = sharding.put_batch(mesh, batch)
            see = functools.partial(look_function, state.params, state.target_params, frozen, batch)
            # One by one: on CPUs of several processes, programs in flight at once can wait for each other for ever.
            looks.append({name: jax.device_get(see(*variant)) for name, variant in monitor.VARIANTS.items()})
        return monitor.summarise(looks) | judge(networks.target.judged(state.target_params, state.params["encoder"]))

    shuffled = config.captions.shuffled
    dataset = _process_batches(source, augment, masks, config.train.batch_size, config.train.seed, shuffled)
    steps, every = config.train.steps, config.train
    with contextlib.ExitStack() as stack:
        stack.enter_context(_last_checkpoint_named(checkpoints))
        stop = stack.enter_context(_StopSignals())
        stack.callback(checkpoints.close)
        progress = stack.enter_context(Progress(workdir, start, steps, every.log_every, every.batch_size))
        batches = pipeline.iterate(dataset, start=start, workers=config.data.workers)
        stack.callback(batches.close)
        if not start:
            progress.write(0, look(state))
        for step in range(start + 1, steps + 1):
            batch = next(batches)
            if step == start + 1 and reader is not None and not batch.caption_valid.any():
                logging.warning("no image of the first batch has a caption: model.conditioner reads null captions")
            state, metrics = step_function(state, sharding.put_batch(mesh, batch), frozen)
            progress.dispatched(step, metrics)
            stopping = stop.asked(step)
            if step % every.eval_every == 0 or step == steps:
                progress.flush(functools.partial(look, state))
            if step % every.checkpoint_every == 0 or step == steps or stopping:
                progress.flush()  # raises before a state whose loss is not finite could be saved
                checkpoints.save(state, config.to_dict())
            if stopping:
                break
    if stop.signal is not None and step < steps:
        print(f"stopped by {stop.signal.name} after step {step}, which is saved; the same command resumes", flush=True)
        sys.exit(128 + stop.signal)


def _process_batches(
    source: Captioned,
    augment: pipeline.Augment,
    masks: MaskSampler,
    batch_size: int,
    seed: int,
    shuffle_captions: bool = False,
) -> grain.MapDataset:
    """This process's part of the batches of `batch_size` images over all processes."""
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return pipeline.batches(
        source, augment, masks, batch_size=batch_size, seed=seed, shuffle_captions=shuffle_captions, **process
    )


def _held_out_batches(
    config: ml_collections.ConfigDict,
    source: Captioned,
    augment: pipeline.Augment,
    masks: MaskSampler,
    mesh: jax.sharding.Mesh,
):
    """A function that yields the monitor's batches, read anew at each look: they may be too large to keep."""
    width = build.encoder(config).size.width
    batch_size, count = monitor.held_out_size(width, config.train.batch_size, len(source), mesh.size)
    if batch_size * count < 2 * width:
        logging.warning("only %d held-out images: RankMe of %d channels wants %d", len(source), width, 2 * width)
    dataset = _process_batches(source, augment, masks, batch_size, HELD_OUT_SEED)
    return lambda: (dataset[i] for i in range(count))


def _parameter_counts(state: TrainState) -> str:
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(params)) for name, params in state.params.items()}
    return ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items()) + " parameters"


@contextlib.contextmanager
def _last_checkpoint_named(checkpoints: Checkpoints):
    """Tells of a loss that is no longer finite what can still be used."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"{error}; the last good checkpoint is of step {checkpoints.latest()}. A resume would meet the same batch: "
            "start a new workdir with a lower optimizer.peak_learning_rate or model.dtype=float32"
        ) from error


def _placed(abstract: Any, layout: Any) -> Any:
    """Shapes and dtypes with the shardings to restore them in."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout)


class _StopSignals:
    """While open, SIGTERM and SIGINT leave a note that the loop reads after each step; a second one interrupts.

    Several processes must stop after the same step: JAX's preemption service, which took SIGTERM when they joined,
    agrees on it. SIGINT interrupts them at once.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None

    def __enter__(self):
        noted = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def asked(self, step: int) -> bool:
        """Whether to stop after this step; to be called after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if jax.process_count() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _note(self, number, frame):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
