"""launch.evaluate --set: other data's features have other names."""

from absl import flags
from absl.testing import flagsaver
import pytest

from configs import base
from launch import evaluate as launch_evaluate
from tc_jepa import build
from tc_jepa.data.prepared import Features
from tc_jepa.errors import UserError


def set_keys(config, *texts: str) -> None:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(set=texts):
        launch_evaluate.set_keys(config)


def test_features_and_the_split_to_test_on_are_set():
    config = base.get_config()
    config.data.path = "DATA"
    set_keys(config, "data.mask_feature=seg", "data.label_features=('coarse',)", "evaluation.test_split=val")
    assert build.features(config) == Features(labels=("coarse",), mask="seg")
    assert config.evaluation.test_split == "val"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.encoder=tiny", "--set=model.encoder=tiny: only evaluation"),
        ("data.path=x", "--set=data.path=x: --data says that"),
        ("data.mask_feture=x", "did you mean data.mask_feature?"),
        ("data.mask_feature=x", "is no prepared folder; leave it out"),
    ],
)
def test_what_cannot_be_set_is_refused(text, message):
    with pytest.raises(UserError) as error:
        set_keys(base.get_config(), text)
    assert message in str(error.value)
