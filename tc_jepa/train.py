"""The train loop: everything around the pure step."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import json
from pathlib import Path
import signal

from absl import logging
import jax

from tc_jepa.config import methods
from tc_jepa.data import pipeline
from tc_jepa.distributed import sharding
from tc_jepa.distributed.processes import is_first, wait_for_all
from tc_jepa.distributed.stop_signals import StopSignals
from tc_jepa.experiment.devices import check_step
from tc_jepa.experiment.experiment import Experiment
from tc_jepa.experiment.leaving import leave_stopped, saved_first
from tc_jepa.experiment.non_finite import check_parameters, explained, forget_stop, skipping
from tc_jepa.experiment.resume import open_checkpoints, print_start, restore_newest
from tc_jepa.experiment.warm_start import warm_start, WarmStart
from tc_jepa.models.layers import Params
from tc_jepa.monitoring.alarms import Alarms, warn
from tc_jepa.monitoring.held_out import held_out_monitor
from tc_jepa.monitoring.profile import StepTrace
from tc_jepa.monitoring.progress import Progress
from tc_jepa.monitoring.tasks import task_monitor
from tc_jepa.state import TrainState
from tc_jepa.step import train_step
from tc_jepa.storage.checkpoint import Checkpoints, CONFIG_FILE, saved_steps
from tc_jepa.storage.files import held, replace_text, TRAINING_LOCK
from tc_jepa.storage.metrics_file import logged_rows, METRICS_FILE, set_aside_damaged
from tc_jepa.storage.run_data import check_data, record_data

TRACE_FOLDER = "trace"

Measure = Callable[[TrainState], dict[str, float]]


def train(experiment: Experiment, workdir: Path) -> None:
    """Trains to config.train.steps, from the newest checkpoint in `workdir` where there is one.

    Expects an experiment with a mesh and a configuration that the workdir agrees with. Raises UserError for bad data or
    devices before anything is written, for a workdir in which another training runs, and for a loss that is not finite.
    After SIGTERM, SIGHUP, or Ctrl-C in a single process, it finishes the step, saves, and exits with 128 + the signal's
    number. Where bad data or a dead data worker ends a single process, the steps before are saved too.
    """
    config, mesh = experiment.config, experiment.mesh
    check_step(experiment)
    resumed = bool(saved_steps(workdir))
    if resumed:
        check_data(workdir, experiment.run_data)
    score = task_monitor(config)
    abstract = jax.eval_shape(experiment.initial_state, experiment.frozen, None, experiment.given_extra)
    layout = sharding.parameter_sharding(mesh, abstract)
    warm = warm_start(config, abstract.params, experiment.reader) if config.train.init_from and not resumed else None
    frozen = sharding.put_parameters(mesh, experiment.frozen)
    look = held_out_monitor(experiment, layout, frozen)

    def measure(state: TrainState) -> dict[str, float]:
        return look(state) | score(experiment.method.evaluation_encoder(state.params, state.extra))

    with contextlib.ExitStack() as stack:
        if is_first():  # which alone of several processes holds the lock
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(workdir / TRAINING_LOCK))
            forget_stop(workdir)
            set_aside_damaged(workdir / METRICS_FILE)
            replace_text(workdir / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
            record_data(workdir, experiment.run_data, resumed=resumed)
        wait_for_all("workdir")
        checkpoints = open_checkpoints(workdir, config.train.keep_checkpoints, config.train.on_damage)
        stack.callback(checkpoints.close)
        start = checkpoints.latest() or 0
        if start >= config.train.steps:
            print(f"{workdir} is trained to step {start} already: nothing to do")
            return
        if start:
            state = restore_newest(workdir, checkpoints, sharding.placed(abstract, layout), config.train.on_damage)
        else:
            state = first_state(experiment, layout, frozen, warm)
        print_start(experiment, workdir, int(state.step), abstract.params)
        step, stopped_by = _train_steps(experiment, workdir, checkpoints, state, layout, frozen, measure)
    if stopped_by is not None and step < config.train.steps:
        leave_stopped(stopped_by, step)


def _train_steps(
    experiment: Experiment,
    workdir: Path,
    checkpoints: Checkpoints,
    state: TrainState,
    layout: TrainState,
    frozen: Params,
    measure: Measure,
) -> tuple[int, signal.Signals | None]:
    """Runs the loop from `state` on; returns the last step and the signal that stopped it, if one did."""
    config, every = experiment.config, experiment.config.train
    start, steps = int(state.step), every.steps
    alarms = Alarms(logged_rows(workdir, start))
    advice = methods.chosen(config).diagnostics(config).against_collapse

    def watch(row: Mapping[str, float]) -> None:
        warn(alarms.observe(row), checkpoints.steps(), advice)

    saved = start

    def save(step: int) -> None:
        """Saves the state, which is that after `step`, unless it is saved."""
        nonlocal saved
        if step > saved:
            progress.flush()  # raises, as the next line, before a state that is not finite could be saved
            check_parameters(state, progress.last_finite)
            progress.sync()
            checkpoints.protect(alarms.kept(checkpoints.steps()))
            checkpoints.save(state, config.to_dict())
            saved = step

    step_function = compiled_step(experiment, layout)
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained(workdir, checkpoints, every.skip_non_finite))
        stop = stack.enter_context(StopSignals())
        progress = Progress(workdir, start, steps, every.log_every, every.batch_size, every.skip_non_finite, watch)
        stack.enter_context(progress)
        dataset, workers = experiment.batches(every.batch_size), config.data.workers
        batches = pipeline.iterate(dataset, start=start, workers=workers, cancelled=stop.pending)
        stack.callback(batches.close)
        trace = StepTrace(workdir / TRACE_FOLDER, every.trace_start, every.trace_steps)
        stack.callback(trace.close)
        if not start:
            progress.write(0, measure(state))
        for step in range(start + 1, steps + 1):
            with trace.step(step):
                with saved_first(save, checkpoints, step - 1):
                    batch = next(batches, None)
                if batch is None:  # a signal came while no batch did
                    step -= 1
                    save(step)
                    break
                if step == start + 1 and (warning := experiment.inputs.warning(batch)):
                    logging.warning("%s", warning)
                state, metrics = step_function(state, sharding.put_batch(experiment.mesh, batch), frozen)
            trace.finish(step, metrics)
            progress.dispatched(step, metrics)
            stopping = stop.requested(step)
            if step % every.eval_every == 0 or step == steps:
                progress.flush(functools.partial(measure, state))
            if step % every.checkpoint_every == 0 or step == steps or stopping:
                save(step)
            if stopping:
                break
    return step, stop.signal


def compiled_step(experiment: Experiment, layout: TrainState):
    """Returns train_step as a jitted function of (state, batch, frozen), sharded over the experiment's mesh.

    `layout` holds the shardings of the state, whose buffers are donated.
    """
    mesh, skips = experiment.mesh, experiment.config.train.skip_non_finite
    return jax.jit(
        functools.partial(
            skipping(train_step) if skips else train_step,
            method=experiment.method,
            optimizer=experiment.optimizer,
            schedules=experiment.schedules,
            seed=experiment.config.train.seed,
            accumulate=experiment.config.train.accumulate,
        ),
        in_shardings=(layout, sharding.batch_sharding(mesh), None),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def first_state(experiment: Experiment, layout: TrainState, frozen: Params, warm: WarmStart | None) -> TrainState:
    """The state before the first step. What is given is donated, so that no parameter is on the devices twice."""
    if warm:
        print(warm.report, flush=True)
    given = sharding.put_parameters(experiment.mesh, warm.params if warm else None)
    given_extra = sharding.put_parameters(experiment.mesh, experiment.given_extra)
    init = jax.jit(experiment.initial_state, out_shardings=layout, donate_argnums=(1, 2))
    return init(frozen, given, given_extra)
