"""Says what a training step needs on a TPU slice or on GPUs, by their own compilers, on a machine that has neither.

  python -m launch.plan --config=configs/paper.py:tc_jepa_in1k_b16 --topology=v5e:16x16 [--config.KEY=VALUE ...]

Topologies: v4:2x2x4, v5e:16x16, v5p:2x2x4, v6e:8x8 and the like for TPUs; a100:8, h100:8, h200:4x8 (hosts x GPUs of
each), b200:8 for GPUs. Needs the compilers: pip install '.[plan-tpu]' or '.[plan-gpu]' (and ptxas, of CUDA). The data
that the configuration names is not read, nor are T5 weights: those of t5-base are assumed.

Prints, for one device: the bytes of parameters, optimizer, extra state and temporaries, and whether they fit; the
operations of a step; the compiler's estimate of its seconds, with the share of the chip's peak that this would be and
the days of the run; and what the devices exchange. All estimates are the compiler's: nothing has run. Where a step does
not fit, keys that save memory are tried until it does. With a conditioner, the step without captions is compiled, too:
the price of text.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from launch import common
from tc_jepa.errors import UserError
from tc_jepa.storage.files import replace_text

CONFIG = config_flags.DEFINE_config_file(
    common.CONFIG_FLAG, help_string="Configuration file; --config.KEY=VALUE overrides one of its keys."
)
TOPOLOGY = flags.DEFINE_string("topology", None, "What to plan for, such as v5e:16x16 or h100:8.")
OUTPUT = common.define_path("output", None, "Folder for plan.json; made if missing.")
COST = flags.DEFINE_boolean("cost", True, "Also ask for seconds and bytes, which can double the time.")
PRICE = flags.DEFINE_boolean("price", True, "Also compile the step without captions, where there are any.")
SEARCH = flags.DEFINE_boolean("search", True, "Try keys that save memory where the step does not fit.")

# Else libtpu asks what machine it is on, complains that it is none of its own, and serves one process at a time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "none",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What is tried where a step does not fit, each with those before it, cheapest first.
SAVINGS = (
    {"model.remat": "conditioner"},
    {"model.remat": "all"},
    {"train.accumulate": 2},
    {"train.accumulate": 4},
    {"train.accumulate": 8},
    {"mesh.data": -1, "mesh.fsdp": 8},
)


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("config", "topology")
    os.environ |= ENVIRONMENT
    logging.set_verbosity(logging.ERROR)
    from tc_jepa.config.validate import validate

    validate(CONFIG.value)
    result = plan(CONFIG.value, TOPOLOGY.value)
    for line in lines(result):
        print(line)
    if OUTPUT.value:
        folder = Path(OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "plan.json", json.dumps(result, indent=2) + "\n")
        print(f"written to {folder / 'plan.json'}")


def plan(config, topology: str) -> dict[str, Any]:
    """Returns what is printed and written, as JSON. Raises UserError where nothing that is tried fits."""
    from tc_jepa.models.conditioners import CONDITIONERS
    from tc_jepa.planning.chips import make_slice
    from tc_jepa.planning.step import OutOfMemory, plan_step

    chosen, tried, kept = None, [], {}
    for saving in ({}, *(SAVINGS if SEARCH.value else ())):
        settings = kept | saving
        with_settings = config.copy_and_resolve_references()
        with_settings.update_from_flattened_dict(settings)
        chip, mesh = make_slice(topology, with_settings.mesh.data, with_settings.mesh.fsdp)
        try:
            found = plan_step(with_settings, chip, mesh, COST.value)
            reason = "" if found.fits else f"needs {found.memory['total'] / 1e9:.1f} of {found.limit / 1e9:.1f} GB"
            kept = settings
        except OutOfMemory as error:
            kept, reason = settings, str(error)
        except UserError as error:  # the method or the batch does not allow it: the next is tried without it
            if not saving:
                raise
            reason = str(error)
        if not reason:
            chosen = with_settings
            break
        tried.append({"settings": settings, "reason": reason})
        print(f"does not fit{_named(settings)}: {reason}", flush=True)
    if chosen is None:
        raise UserError(f"nothing that was tried fits {topology}; give a larger slice or a smaller train.batch_size")
    steps = config.train.steps
    result = {
        "topology": topology,
        "devices": mesh.size,
        "settings": settings,
        "tried": tried,
        **found._asdict(),
        "collectives": [one._asdict() for one in found.collectives],
        "peak_share": found.peak_share(chip),
        "days": None if found.seconds is None else steps * found.seconds / 86400,
        "price_of_text": None,
    }
    reads = config.method.name == "jepa" and CONDITIONERS[config.model.conditioner].reads_words
    if reads and PRICE.value and found.seconds is not None:
        chosen.model.conditioner = "none"
        plain = plan_step(chosen, chip, mesh)
        result["price_of_text"] = {"seconds": found.seconds / plain.seconds, "flops": found.flops / plain.flops}
    return result


def _named(settings: Mapping[str, Any]) -> str:
    return " with " + " ".join(f"--config.{key}={value}" for key, value in settings.items()) if settings else ""


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The plan as text."""
    memory, limit = result["memory"], result["limit"]
    spare = 100 * (1 - memory["total"] / limit)
    yield f"{result['topology']}, {result['devices']} devices; for one device:"
    for name, value in memory.items():
        yield f"  {name:12} {scaled(value)}B"
    yield f"  fits{_named(result['settings'])}: {spare:.0f} % of {scaled(limit)}B to spare"
    yield f"  {scaled(result['flops'])}FLOP a step in matrix products"
    if result["seconds"] is None:
        yield "  no estimate of seconds: not asked for, or this compiler makes none"
    else:
        yield f"  {scaled(result['bytes_moved'])}B moved to and from memory"
        length = f"{result['seconds']:.4f} s a step, {result['days']:.1f} days for the run"
        yield f"  the compiler's estimate: {length}, {100 * result['peak_share']:.0f} % of the chip's peak"
    if result["price_of_text"]:
        price = result["price_of_text"]
        yield f"  text costs {price['seconds']:.2f} times the seconds and {price['flops']:.2f} times the FLOP"
    for one in result["collectives"]:
        place = " in each iteration of a loop" if one["in_loop"] else ""
        yield f"  {one['count']} x {one['kind']} over {one['axes']}: {scaled(one['bytes'])}B{place}"
    yield f"  compiled in {result['compile_seconds']:.0f} s"


def scaled(value: float) -> str:
    """Three or four digits of a number, with a space and a decimal prefix: 1234567 -> "1.23 M"."""
    prefixes = ["", "k", "M", "G", "T"]
    while value >= 1000 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    return f"{value:.4g} {prefixes[0]}" if value >= 100 else f"{value:.3g} {prefixes[0]}"


if __name__ == "__main__":
    common.run(main)
