"""What a method's configuration comes to: the record that each module in methods.METHODS builds."""

from typing import NamedTuple

from tc_jepa.data.captions.tokenizer import CaptionReader
from tc_jepa.data.pipeline import Inputs
from tc_jepa.methods.method import Method
from tc_jepa.models.layers import Params


class MethodParts(NamedTuple):
    """A method with what feeds it."""

    method: Method
    inputs: Inputs
    heldout_inputs: Inputs  # as `inputs`, without what corrupts training data on purpose
    reader: CaptionReader | None = None  # of captions; None for a method that reads none
    frozen: Params = {}  # parameters that are never trained, by name of network
