"""A model and a batch small enough for every test: 4 x 4 patches, 2 predictor layers, 3 captions of 5 words."""

import functools
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from tc_jepa import train as train_loop
from tc_jepa.batch import JepaBatch, uncorrupted
from tc_jepa.convert import t5
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.distributed.sharding import make_mesh
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.masking import BlockMasks
from tc_jepa.methods.jepa import Jepa
from tc_jepa.methods.losses import Objective
from tc_jepa.methods.method import Method
from tc_jepa.methods.targets import EmaEncoder, Momentum
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners import base as conditioner
from tc_jepa.models.conditioners.word_cross_attention import WordCrossAttention
from tc_jepa.models.kernels.backend import PLAIN
from tc_jepa.models.predictor import Predictor
from tc_jepa.models.text import embedding as text
from tc_jepa.optimizer import adamw, Schedules
from tc_jepa.state import initial_state, TrainState
from tc_jepa.step import train_step

IMAGE, PATCH, GRID, DEPTH, VOCABULARY, WORDS = 16, 4, (4, 4), 2, 20, 5
MASKS = BlockMasks(GRID, 2, (0.1, 0.2), (0.75, 1.5), (0.85, 1.0), (1.0, 1.0), context_tokens=12, min_context=4)
OBJECTIVE = Objective("l2_norm", 0.1, 0.5, warmup_steps=0, regulariser="rectified_cosine", temperature=0.1)
SCHEDULES = Schedules(100, 5, 1e-3, 5e-3, 1e-6, 0.04, 0.4)
OPTIMIZER = adamw(SCHEDULES, 0.9, 0.999, 1e-8)
SMALL_RUN = {  # keys of a configuration with which a run is of seconds
    "train.batch_size": 8,
    "train.log_every": 1,
    "image.size": 32,
    "captions.per_image": 2,
    "captions.words": 10,
    "masking.context_tokens": 8,
    "masking.min_context": 4,
    "masking.target_blocks": 2,
    "model.patch_size": 8,
    "model.predictor.width": 16,
    "model.predictor.depth": 1,
    "model.text_width": 8,
    "model.dtype": "float32",
}


def jepa(reader: conditioner.Conditioner | None = None, dtype=jnp.float32, backend=PLAIN, **changes) -> Jepa:
    """`reader` None: words at every layer. `changes` are fields of the Predictor."""
    linear = layers.Linear(dtype)
    size = vit.Size(width=32, depth=1, heads=4, hidden=64)
    encoder = vit.VisionTransformer(size, PATCH, linear, backend=backend)
    reader = WordCrossAttention(linear, backend=backend) if reader is None else reader
    predictor = {"grid": GRID, "width": 16, "depth": DEPTH, "heads": 4, "output_width": 32, "conditioner": reader}
    return Jepa(
        encoder,
        Predictor(**(predictor | {"linear": linear, "backend": backend} | changes)),
        text.EmbeddingText(VOCABULARY, 12, WORDS),
        EmaEncoder(encoder, normalise="layer"),
        OBJECTIVE,
        Momentum(0.9, 1.0, 100),
    )


def batch(size: int, seed: int = 0) -> JepaBatch:
    """Random images, captions of 2 to 5 words, and an image without any caption (the last one)."""
    rng = np.random.default_rng(seed)
    masks = [MASKS.draw_at(seed, i) for i in range(size)]
    lengths = rng.integers(2, WORDS + 1, (size, 3))
    caption_valid = np.arange(3) < rng.integers(1, 4, (size, 1))
    caption_valid[-1] = False
    return JepaBatch(
        rng.integers(0, 256, (size, IMAGE, IMAGE, 3), dtype=np.uint8),
        rng.integers(3, VOCABULARY, (size, 3, WORDS), dtype=np.int32),
        np.arange(WORDS) < lengths[..., None],
        caption_valid,
        *(np.stack(rows) for rows in zip(*masks, strict=True)),
        **uncorrupted(size),
    )


def state(method: Method, seed: int = 0, teacher=None) -> TrainState:
    example = jax.tree.map(lambda x: x[0], batch(1))
    return jax.jit(lambda: initial_state(method, example, OPTIMIZER, seed, {}, given_extra=teacher))()


def step(method: Method):
    """train_step as a function of state and batch."""
    settings = {"optimizer": OPTIMIZER, "schedules": SCHEDULES, "seed": 0}
    return functools.partial(train_step, frozen={}, method=method, **settings)


@functools.cache
def step_function(method: Method):
    return jax.jit(step(method))


@functools.cache
def loss_function(method: Jepa):
    """The loss terms, compiled, as a function of params, extra, batch and optionally StoP's key."""
    return jax.jit(lambda *arguments: method.forward(*arguments)[0])


def train(config, workdir: Path) -> None:
    """Trains by a configuration, on all devices."""
    train_loop.train(build_experiment(config, make_mesh(config.mesh.data, config.mesh.fsdp)), workdir)


def t5_folder(folder: Path, seed: int = 0) -> Path:
    """A T5 1.0 of one layer with random weights and the scenes' vocabulary, as Hugging Face publishes them."""
    folder.mkdir()
    shutil.copy(scenes_vocabulary_path(), folder / t5.VOCABULARY)
    pieces = CaptionTokenizer(scenes_vocabulary_path(), WORDS).vocabulary_size
    sizes = {"vocab_size": pieces, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "layer_norm_epsilon": 1e-6}
    written = {"model_type": "t5", "feed_forward_proj": "relu"} | sizes | buckets
    (folder / t5.CONFIG).write_text(json.dumps(written))
    size = t5.T5Config(pieces, 8, 4, 16, 1, 2, 8, 16, gated=False, epsilon=1e-6)
    rng = np.random.default_rng(seed)
    places = t5.encoder_places(size)
    tensors = {name: rng.normal(size=place.shape).astype(np.float32) for name, place in places.items()}
    save_file(tensors, folder / t5.WEIGHTS)
    return folder


def lively(params, seed: int = 1):
    """Parameters of ordinary size instead of the initial 0.02, so that every path carries signal."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
