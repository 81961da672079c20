"""What mask tokens hold beside their place: what was done to the context images (IWM), and noise (StoP, N-JEPA)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.models.layers import Linear

UNCORRUPTED = np.zeros((1, 0), np.float32)  # float32 [B, 0] stands for context images to which nothing was done
LAYERS = 3


class FeatureConditioning(nn.Module):
    """Mask token float32 [P] and parameters of a corruption, float32 [B, A] -> a mask token for each image, [B, P].

    The feature conditioning of Image World Models (IWM, Garrido et al. 2024, arXiv 2403.00504): both are concatenated
    over channels and go through three linear layers, each of P channels, with ReLU between them. Positions are added
    afterwards. For parameters [B, 0], A = `parameters` zeros are taken. Initial kernels are LeCun normal: with the
    official 0.02, three layers in a row would leave next to nothing of both.
    """

    parameters: int
    linear: Linear

    @nn.compact
    def __call__(self, mask_token_P: jax.Array, corruption_BxA: jax.Array) -> jax.Array:
        B, A = corruption_BxA.shape
        done = corruption_BxA if A else jnp.zeros((B, self.parameters))
        x = jnp.concatenate([jnp.broadcast_to(mask_token_P, (B, *mask_token_P.shape)), done], axis=-1)
        for i in range(LAYERS):
            x = self.linear.scaled(x.shape[-1])(len(mask_token_P), f"fc{i + 1}")(nn.relu(x) if i else x)
        return x


def position_noise(
    new_key: Callable[[], jax.Array], shape: tuple[int, int, int, int], sigma: float, levels: int
) -> jax.Array:
    """The noise n of mask tokens, float32 of `shape` [B, M, T, D], before the projection A; see Predictor.

    With one level it is StoP's (Bar et al. 2024, arXiv 2308.00566, the paper's second baseline): with A the projection
    of context features, a mask token is A n_j + p_j + m, n_j ~ Normal(0, sigma I), as if its position were uncertain.
    A is shared with the context, so that training cannot remove the noise.

    With more it follows N-JEPA's idea (Qiu et al. 2025, arXiv 2507.15216), noise of several levels on the places of
    masked tokens, not its details, whose code is not public. Each image draws a level i uniformly from 1 to `levels`,
    and has the variance sigma i / levels. The predictor does not read the level, and the noise passes A as in StoP.
    """
    noise = jax.random.normal(new_key(), shape)
    if levels == 1:
        return noise * sigma**0.5
    level_B = jax.random.randint(new_key(), shape[:1], 1, levels + 1)
    return noise * jnp.sqrt(sigma * level_B / levels)[:, None, None, None]
