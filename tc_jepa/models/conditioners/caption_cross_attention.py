"""The conditioner "caption_cross_attention": each token attends to whole captions (paper Fig. 4)."""

from tc_jepa.models.conditioners.base import BlockFunction, Reading, Tokens, Words
from tc_jepa.models.conditioners.word_cross_attention import WordCrossAttention


class CaptionCrossAttention(WordCrossAttention):
    """WordCrossAttention with the mean word vector of a caption as its only word. There is nothing to regularise.

    The softmax over one word is 1, so queries and keys have no effect and each token gets W_V of the mean.
    """

    keys = ("layers", "fusion", "fuse_first", "mlp_ratio", "post_norm")
    attends_to_words = False

    def condition_layer(
        self, index: int, block: BlockFunction, tokens: Tokens, words: Words
    ) -> tuple[Tokens, Reading | None]:
        tokens, _ = super().condition_layer(index, block, tokens, words.averaged())
        return tokens, None
