"""The table of measurements of launch.benchmark.

To add one: a file NAME.py in this folder with a function `measure(config, options) -> Figures`, and a line here. Only
`load` imports those files, and with them JAX.
"""

from collections.abc import Callable
import importlib

MEASUREMENTS = {  # name and module -> description
    "step": "a training step: compilation, time, operations by part, memory, and the price of text",
    "input": "reading, decoding, cropping, tokenising, masking and batching images, alone and together",
    "encode": "encoding captions with a T5",
    "eval": "extracting features, and fitting the bank of linear heads",
}


def load(name: str) -> Callable:
    """Returns the function `measure` of a measurement of the table."""
    return importlib.import_module(f"{__name__}.{name}").measure
