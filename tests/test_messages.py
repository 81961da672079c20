"""Some error messages in full, as samples of their style. Other tests assert on an error's kind and what it names."""

from pathlib import Path

import pytest

from configs import base
from tc_jepa.config.validate import validate
from tc_jepa.errors import UserError
from tc_jepa.storage.checkpoint import chosen_step
from tc_jepa.storage.files import local_path


def validated(name: str, value) -> None:
    config = base.get_config()
    config.update_from_flattened_dict({name: value})
    validate(config)


MESSAGES = {
    "image.size=100 is not divisible by model.patch_size=16; the nearest sizes that are: 96 and 112": lambda: validated(
        "image.size", 100
    ),
    "model.text=t5 needs model.text_weights, the folder of a Hugging Face T5": lambda: validated("model.text", "t5"),
    "train.step is not a key; did you mean train.steps?": lambda: base.KEYS.named("train.step"),
    "optimizer.beta1=2.0 must be at least 0 and below 1": lambda: base.KEYS.named("optimizer.beta1").check(2.0),
    "--output=gs://b/x is a URL, which cannot be used here; give a local path, or mount the bucket": lambda: local_path(
        "gs://b/x", "--output"
    ),
    "nowhere holds no checkpoint; train there first, or give another workdir": lambda: chosen_step(
        Path("nowhere"), None
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_says_what_is_wrong_and_how_to_fix_it(message):
    with pytest.raises(UserError) as raised:
        MESSAGES[message]()
    assert str(raised.value) == message
