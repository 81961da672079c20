"""Convert published weights to folders that this project opens, and its own to Hugging Face's format.

  python -m launch.convert --from=ijepa --input=FILE.pth.tar --output=DIR [--network=encoder] [--heads=N]
  python -m launch.convert --from=hf_ijepa --input=FOLDER --output=DIR
  python -m launch.convert --to=hf_ijepa --input=WORKDIR_OR_FOLDER --output=DIR [--step=N]
  python -m launch.convert --from=t5 --input=FOLDER --output=DIR

launch.evaluate --encoder, train.init_from and tc_jepa.load_encoder open a converted folder (its format is described in
tc_jepa/convert/folder.py), a workdir or a Hugging Face folder. --from=t5 writes the encoder alone, for
--config.model.text_weights; it also reads pytorch_model.bin. Reading .pth.tar and .bin requires PyTorch: pip install
'torch>=2.6'. Only tensors are read from them; a file that contains anything else is refused.

The output appears when it is complete; a command that fails leaves nothing behind.
"""

from collections.abc import Sequence
from pathlib import Path
import signal

from absl import flags, logging

from launch import common
from tc_jepa.errors import UserError
from tc_jepa.storage.files import as_path, new_folder, refuse_existing

IJEPA, HF_IJEPA, T5, TC_JEPA = "ijepa", "hf_ijepa", "t5", "tc_jepa"
PAIRS = (
    (IJEPA, TC_JEPA),
    (IJEPA, HF_IJEPA),
    (HF_IJEPA, TC_JEPA),
    (TC_JEPA, HF_IJEPA),
    (TC_JEPA, TC_JEPA),
    (T5, T5),
)
NETWORKS = ("target_encoder", "encoder")  # tc_jepa.convert.ijepa.NETWORKS, here to keep --help fast

FROM = flags.DEFINE_string(
    "from",
    None,
    "Format of the input. ijepa: a checkpoint of the official code; hf_ijepa, t5: a Hugging Face folder; tc_jepa "
    "(default with --to): a workdir or a converted folder.",
)
TO = flags.DEFINE_string(
    "to", None, "Format of the output. tc_jepa (default): a converted folder; hf_ijepa: a Hugging Face folder."
)
INPUT = common.define_workdir("input", "The file or folder to read.")
OUTPUT = common.define_path("output", None, "The folder to write. It must not exist yet.")
NETWORK = flags.DEFINE_string(
    "network",
    NETWORKS[0],
    "ijepa: the network to read, target_encoder (used by I-JEPA's evaluations) or encoder (context).",
)
HEADS = flags.DEFINE_integer(
    "heads", None, "ijepa: number of attention heads, which the file does not hold; default: that of the standard ViT."
)
STEP = flags.DEFINE_integer("step", None, "tc_jepa: step of the workdir's checkpoint; default: the newest.")


def main(argv: Sequence[str]) -> None:
    del argv
    source, target = check_flags()
    # A scheduler's SIGTERM ends the command like Ctrl-C, so that an unfinished output is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.set_verbosity(logging.WARNING)
    output = Path(OUTPUT.value)
    refuse_existing(output)
    if source == T5:
        convert_t5(output)
        return
    weights = read(source, predictor=target == TC_JEPA)
    from tc_jepa.convert import folder, hf_ijepa

    with new_folder(output) as unfinished:
        if target == TC_JEPA:
            network = f", network {NETWORK.value}" if source == IJEPA else ""
            folder.save(weights, unfinished, origin=f"{source} {as_path(INPUT.value).name}{network}")
        else:
            hf_ijepa.save(weights, unfinished)
    size = weights.encoder.size
    positions = "stored" if weights.encoder.stored_positions else "sine-cosine"
    predictor = "and predictor" if target == TC_JEPA and weights.predictor is not None else "without predictor"
    print(
        f"{output}: encoder of width {size.width}, depth {size.depth}, {size.heads} heads, hidden {size.hidden}, patch "
        f"{weights.encoder.patch_size}, {weights.image_size} px, {positions} positions, {predictor}"
    )


def check_flags() -> tuple[str, str]:
    """Returns the formats of input and output. UserError for flags that are missing, unknown or unused."""
    if FROM.value is None and TO.value is None:
        raise UserError("give --from=ijepa, hf_ijepa or t5, or --to=hf_ijepa; see --help", about="from")
    for name in ("from", "to"):
        value, known = flags.FLAGS[name].value, {pair[name == "to"] for pair in PAIRS}
        if value is not None and value not in known:
            raise UserError(f"--{name}={value} is unknown; give one of {', '.join(sorted(known))}", about=name)
    source = FROM.value or TC_JEPA
    target = TO.value or (T5 if source == T5 else TC_JEPA)
    if (source, target) not in PAIRS:
        known = [f"--to={other}" for one, other in PAIRS if one == source]
        raise UserError(f"--from={source} cannot be converted --to={target}; give {' or '.join(known)}", about="to")
    common.require("input", "output")
    for name, user in (("network", IJEPA), ("heads", IJEPA), ("step", TC_JEPA)):
        if source != user and flags.FLAGS[name].present:
            raise UserError(f"--{name} has no effect with --from={source}; leave it out", about=name)
    if NETWORK.value not in NETWORKS:
        raise UserError(f"--network={NETWORK.value} is unknown; give one of {', '.join(NETWORKS)}", about="network")
    path = as_path(INPUT.value)
    if not (path.is_file() if source == IJEPA else path.is_dir()):
        wanted = "file such as IN1K-vit.h.14-300e.pth.tar" if source == IJEPA else "folder"
        raise UserError(f"--input={path} is not a {wanted}, which --from={source} reads", about="input")
    return source, target


def read(source: str, *, predictor: bool):
    """Returns the EncoderWeights in --input, with the predictor if asked for."""
    from tc_jepa.convert import hf_ijepa, ijepa
    from tc_jepa.convert.tensors import CONFIG, read_json
    from tc_jepa.pretrained import encoder as pretrained

    path = as_path(INPUT.value)
    if source == IJEPA:
        return ijepa.load(path, NETWORK.value, HEADS.value)
    if source == HF_IJEPA:
        return hf_ijepa.load(path)
    if not pretrained.is_run(path) and "format" not in read_json(path / CONFIG):
        raise UserError(f"--input={path} is a Hugging Face folder; give --from=hf_ijepa", about="input")
    return pretrained.open_encoder(path, STEP.value, predictor=predictor)


def convert_t5(output: Path) -> None:
    from tc_jepa.convert import t5

    with new_folder(output) as unfinished:
        t5.convert(INPUT.value, unfinished)
    config, _ = t5.load(output)
    missing = (
        "" if (output / t5.VOCABULARY).is_file() else f"; the input has no {t5.VOCABULARY}: add the model's to train"
    )
    print(f"{output}: T5 encoder of width {config.width}, depth {config.depth}, {config.heads} heads{missing}")


if __name__ == "__main__":
    common.run(main)
