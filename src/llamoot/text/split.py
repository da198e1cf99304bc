"""Where byte-pair vocabularies cut a text into words before merging: one row per family.

A row holds regular expressions (Oniguruma syntax), applied one after the other, each on the pieces
the one before left: a match becomes a piece of its own, so does what lies between matches.
The expressions are those the vocabularies were trained with, as published in their own
tokenizer files; the names are the values of the key `tokenizer.ggml.pre`. llama.cpp rewrites a
few for its own engine, so that these differ from it on purpose: letter case outside ASCII
(gpt-4o, tekken, granite-embed-multi-97m), marks (kimi-k2), digits before letters (tiny_aya).
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

Splitter = Callable[[str], list[tuple[str, tuple[int, int]]]]

SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NOT_HAN = r"\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LEAD = r"[^\r\n\p{L}\p{N}]?"
ASCII_MARK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
MARKS = rf"{ASCII_MARK}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
LATIN = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-"
    "\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90"
    "-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-"
    "\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
ASIA = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-"
    "\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00"
    "-\ud7af\u1100-\u11ff]+"
)
DIGITS_FROM_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"

LLAMA3 = rf"{SUFFIX}|{WORD}|\p{{N}}{{1,3}}|{OTHER}|{SPACE}"
QWEN2 = rf"{SUFFIX}|{WORD}|\p{{N}}|{OTHER}|{SPACE}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CASED = rf"{LEAD}{UPPER}*{LOWER}+{{0}}|{LEAD}{UPPER}+{LOWER}*{{0}}|{{1}}| ?[^\s\p{{L}}\p{{N}}]+"
GPT4O = CASED.replace("{0}", SUFFIX + "?").replace("{1}", r"\p{N}{1,3}") + rf"[\r\n/]*|{SPACE}"
TEKKEN = CASED.replace("{0}", "").replace("{1}", r"\p{N}") + rf"[\r\n/]*|{SPACE}"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


@dataclass(frozen=True, slots=True)
class Family:
    """How one `pre` cuts and what else depends on the name alone."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False  # a whole word found in the vocabulary is taken as it is
    add_bos: bool = False
    raw: bool = False  # pieces are UTF-8 with ▁ for spaces, not GPT-2's characters for bytes


def _rows() -> dict[str, Family]:
    """Names to families; the table as it is written below, spread over the names."""
    return {name: family for names, family in TABLE for name in names.split()}


TABLE = (
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        Family((LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", Family((LLAMA3,))),
    ("glm4 glm5", Family((LLAMA3,), ignore_merges=True)),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        Family((QWEN2,)),
    ),
    (
        "qwen35",
        Family(
            (
                rf"{SUFFIX}|{LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACE}",
            )
        ),
    ),
    ("ufakzeka", Family((rf"{WORD}|\p{{N}}|{OTHER}|{SPACE}",))),
    (
        "bailingmoe bailingmoe2 llada-moe",
        Family(
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "seed-coder",
        Family((rf"{SUFFIX}|{WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACE}",)),
    ),
    ("laguna", Family((r"[^\n]+|[\n]+", QWEN2))),
    (
        "jais-2",
        Family(
            (
                rf"{SUFFIX}|{WORD}|\p{{N}}{{1,3}}|{OTHER}|\s*[\r\n]+|"
                + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
                + r"|\s{1,2}(?!\S)|\s{1}",
            )
        ),
    ),
    (
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert "
        "exaone4 mpt olmo jais trillion granite-docling roberta-bpe jina-v1-en jina-v2-code",
        Family((GPT2,)),
    ),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        Family((r"\p{N}", GPT2)),
    ),
    ("falcon", Family((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"))),
    ("default", Family((PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", Family((GPT4O,))),
    ("tekken", Family((TEKKEN,), ignore_merges=True, add_bos=True)),
    ("granite-embed-multi-97m", Family((GPT4O,), ignore_merges=True)),
    ("tiny_aya cohere2moe", Family((r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O))),
    (
        "exaone-moe",
        Family(
            (
                rf"{SUFFIX}|{LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "minicpm5",
        Family((r"\p{N}{1,3}", rf"{SUFFIX}|{WORD}|\p{{N}}+|{OTHER}|{SPACE}"), ignore_merges=True),
    ),
    (
        "youtu",
        Family(
            (
                "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + KANA,
                GPT4O.replace(r"\p{N}{1,3}", r"\p{N}"),
            ),
            ignore_merges=True,
        ),
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        Family((r"\p{N}{1,3}", KANA, rf"{MARKS}[\r\n]*|{SPACE}")),
    ),
    (
        "spark2_5",
        Family((r"\p{N}{1,3}", KANA, rf"{MARKS}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    ),
    (
        "deepseek-llm",
        Family(
            (
                r"[\r\n]",
                rf"\s?[{LATIN}]+",
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$",
                "[一-龥ࠀ-一가-\ud7ff]+",
                r"\p{N}+",
            )
        ),
    ),
    (
        "deepseek-coder",
        Family((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    ),
    ("afmoe", Family((DIGITS_FROM_RIGHT, ASIA, rf"{MARKS}[\r\n]*|{SPACE}"))),
    ("superbpe", Family((r"\p{N}+", r"(?=(\d{3})+(?!\d))"))),
    (
        "chameleon",
        Family(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ),
            add_bos=True,
        ),
    ),
    ("viking", Family((BLOOM, r"\p{N}"))),
    ("bloom poro-chat gpt3-finnish", Family((BLOOM,))),
    (
        "kimi-k2",
        Family(
            (
                rf"[\p{{Han}}]+|{LEAD}[\p{{Lu}}\p{{Lt}}{NOT_HAN}*[\p{{Ll}}{NOT_HAN}+{SUFFIX}?"
                rf"|{LEAD}[\p{{Lu}}\p{{Lt}}{NOT_HAN}+[\p{{Ll}}{NOT_HAN}*{SUFFIX}?"
                rf"|\p{{N}}{{1,3}}|{OTHER}|{SPACE}",
            )
        ),
    ),
    ("gemma4 granite-embed-multi-311m sarvam-moe", Family((r"[^\n]+|[\n]+",), raw=True)),
    ("whitespace", Family((r"\S+",), raw=True)),
)
FAMILIES = _rows()


def splitter(family: Family) -> Splitter:
    """The function that cuts a text into (piece, span) pairs in order; nothing is dropped."""
    steps = [Split(Regex(expression), "isolated") for expression in family.expressions]
    cut: Splitter = (
        Sequence(steps).pre_tokenize_str if len(steps) > 1 else (steps[0].pre_tokenize_str)
    )
    return cut
