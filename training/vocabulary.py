"""The tokenizer of the built-in model: byte-level BPE over its own corpus, digits one at a time."""

from itertools import islice

from corpus import SPECIAL, conversations
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# The split of the "qwen2" family, which llama.cpp and the engine know by that name.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(size: int, seed: int, turns: tuple = ()) -> Tokenizer:
    """Learn merges from 20,000 conversations; ids 0… are the special tokens, then the bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pairs = islice(conversations(seed, "train", turns), 20_000)
    tokenizer.train_from_iterator((p + r for p, r in pairs), trainer)
    return tokenizer
