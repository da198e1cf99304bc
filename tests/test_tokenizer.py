"""Tokenizers: the reference ids, exact round trips, special tokens only where they are trusted."""

import os
import random
import re
import time
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from llamoot.errors import BadRequest, ModelFileError
from llamoot.gguf.reader import open_gguf
from llamoot.gguf.writer import Writer
from llamoot.text.split import FAMILIES, splitter
from llamoot.text.tokenizer import Part, Tokenizer, load_tokenizer

pytestmark = pytest.mark.pure

CASES = [
    "bert-bge",
    "deepseek-coder",
    "deepseek-llm",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
    "qwen35",
    "starcoder",
]
ROUND_TRIPS = int(os.environ.get("ROUND_TRIPS", 300))
PEER_TEXTS = ROUND_TRIPS // 2
EXACT = [name for name in CASES if name != "bert-bge"]  # WordPiece drops case, accents and spaces


@cache
def opened(path) -> Tokenizer:  # type: ignore[no-untyped-def]
    with open_gguf(path) as file:
        return load_tokenizer(file.metadata, path)


def tokenizer_of(shared, name) -> Tokenizer:  # type: ignore[no-untyped-def]
    return opened(shared / "vocab" / f"ggml-vocab-{name}.gguf")


def random_text(rng: random.Random) -> str:
    """Unicode of every plane, with words, spaces, digits and newlines between."""
    out = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.randrange(8)
        if kind == 0:
            out.append(
                chr(rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000)]))
            )
        elif kind == 1:
            out.append(
                rng.choice(["\n", "\r\n", "\t", " ", "  ", "\n\n", "\xa0", "\u3000", "\0", "▁"])
            )
        elif kind == 2:
            out.append(str(rng.randrange(10 ** rng.randrange(1, 9))))
        elif kind == 3:
            start = rng.choice([0x4E00, 0x3040, 0xAC00, 0x400, 0x600, 0x900, 0xE00, 0x1F600])
            out.append("".join(chr(start + rng.randrange(80)) for _ in range(rng.randrange(1, 6))))
        elif kind == 4:
            out.append(
                rng.choice(["'s", "'LL", "...", "<s>", "<|im_end|>", "e\u0301", "👨‍👩‍👧", "<0x0A>"])
            )
        else:
            out.append(" " * rng.randrange(2) + "".join(rng.choices("etaoinsrhlDLU", k=4)))
    return "".join(out)


@pytest.mark.parametrize("name", CASES)
def test_every_reference_case_gives_the_same_ids(shared, name):  # type: ignore[no-untyped-def]
    base = shared / "vocab" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{base}.inp").read_bytes().decode()
    wanted = Path(f"{base}.out").read_text().split("\n")
    texts = texts.split("\n__ggml_vocab_test__\n")
    tokenizer = tokenizer_of(shared, name)
    assert len(texts) >= 47 and len(wanted) >= len(texts)
    for text, ids in zip(texts, wanted):
        assert tokenizer.encode(text, add_special=False) == list(map(int, ids.split())), text


def lacks(tokenizer: Tokenizer) -> set[int]:
    """Bytes for which a byte-level vocabulary has no token (starcoder lacks 0xF1)."""
    have = set(tokenizer.pieces)
    return {b for b in range(256) if bytes((b,)) not in have} - {*range(0xF5, 0x100), 0xC0, 0xC1}


@pytest.mark.parametrize("name", EXACT)
def test_text_comes_back_from_its_ids(shared, name):  # type: ignore[no-untyped-def]
    tokenizer, rng = tokenizer_of(shared, name), random.Random(name)
    missing, done = lacks(tokenizer), 0
    assert len(missing) <= 2
    for _ in range(ROUND_TRIPS):
        text = random_text(rng)
        if name in ("llama-spm", "phi-3"):
            text = text.replace("▁", " ")  # one and the same to SentencePiece
        if not missing & set(text.encode()):
            done += 1
            assert tokenizer.decode(tokenizer.encode(text)) == text
    assert done > 0.9 * ROUND_TRIPS


@pytest.mark.peer
@pytest.mark.parametrize("name", [*EXACT, "nomic-bert-moe"])
def test_random_text_gets_the_ids_llama_cpp_gives(shared, name):  # type: ignore[no-untyped-def]
    peer = pytest.importorskip("llama_cpp")
    path = shared / "vocab" / f"ggml-vocab-{name}.gguf"
    # Its expressions without \\p know ASCII spaces only; and each has its own version of Unicode.
    skip = "[\0\xa0\u3000]" if name.startswith("deepseek") else "\0"
    theirs = peer.Llama(str(path), vocab_only=True, verbose=False)
    tokenizer, rng = tokenizer_of(shared, name), random.Random(name)
    for _ in range(PEER_TEXTS):
        text = "".join(c for c in random_text(rng) if unicodedata.category(c) != "Cn")
        text = re.sub(skip, "", text)
        for special in (True, False):
            want = theirs.tokenize(text.encode(), add_bos=special, special=False)
            assert tokenizer.encode(text, add_special=special) == want, text


def test_wordpiece_gives_the_ids_of_the_tokenizers_library(shared):  # type: ignore[no-untyped-def]
    """llama.cpp is no measure here: it drops spacing marks, which BERT keeps.

    Of characters younger than Unicode 3.2 the library does not know which are punctuation.
    """
    ours = tokenizer_of(shared, "bert-bge")
    words = {
        token[3:].decode() if token.startswith("▁".encode()) else "##" + token.decode(): i
        for i, token in enumerate(ours.vocab.tokens)
    }
    words |= {"[UNK]": 100}
    model = models.WordPiece(words, unk_token="[UNK]", max_input_chars_per_word=10_000)
    theirs = tokenizers.Tokenizer(model)
    theirs.normalizer = normalizers.BertNormalizer(lowercase=True)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rng = random.Random(1)
    for _ in range(1000):
        text = "".join(c for c in random_text(rng) if unicodedata.ucd_3_2_0.category(c) != "Cn")
        assert ours.encode(text, add_special=False) == theirs.encode(text).ids, text


def test_a_control_token_in_a_users_text_is_never_parsed(shared):  # type: ignore[no-untyped-def]
    for name in EXACT:
        tokenizer = tokenizer_of(shared, name)
        text = " and ".join([*tokenizer.control_names[:20], "<0x0A>"])
        assert not [i for i in tokenizer.encode(text, add_special=False) if tokenizer.is_control(i)]
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        controls = [i for i in ids if tokenizer.is_control(i)]
        assert len(controls) == len(tokenizer.control_names[:20])


def test_only_trusted_parts_hold_control_tokens(shared):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, "qwen2")
    parts = [Part("<|im_start|>user\n", True), Part("a<|im_end|>b"), Part("<|im_end|>\n", True)]
    ids = tokenizer.encode_parts(parts)
    assert ids.count(tokenizer.find("<|im_end|>")) == 1
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\na<|im_end|>b<|im_end|>\n"


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60), cut=st.integers(0, 60))
@pytest.mark.parametrize("name", ["qwen2", "llama-spm"])
def test_where_a_text_is_cut_into_parts_changes_no_id(shared, name, text, cut):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, name)
    assume(not any(control in text for control in tokenizer.control_names))
    parts = [Part(text[:cut], True), Part(text[cut:], False)]
    assert tokenizer.encode_parts(parts) == tokenizer.encode(text)


def test_lone_surrogates_become_replacement_characters(shared):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, "qwen2")
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_cutting_loses_no_character(name):  # type: ignore[no-untyped-def]
    cut, rng = splitter(FAMILIES[name]), random.Random(name)
    for _ in range(60):
        text = random_text(rng)
        assert "".join(piece for piece, _ in cut(text)) == text


FAMILY_CASES = [
    (
        "llama3",
        "I'LL take 12345 of\n\n it",
        ["I", "'LL", " take", " ", "123", "45", " of", "\n\n", " it"],
    ),
    ("qwen2", "Go 12!\n", ["Go", " ", "1", "2", "!\n"]),
    ("qwen35", "e\u0301a", ["e\u0301a"]),
    ("gpt-2", "it's  12 ok", ["it", "'s", " ", " 12", " ok"]),
    ("starcoder", "a12", ["a", "1", "2"]),
    ("falcon", "a12345--b", ["a", "123", "45", "--", "b"]),
    ("gpt-4o", "HelloWorld's 1234/x", ["Hello", "World's", " ", "123", "4", "/x"]),
    ("tekken", "HelloWorld's 12", ["Hello", "World", "'s", " ", "1", "2"]),
    ("tiny_aya", "1234567 ab", ["1", "234", "567", " ab"]),
    ("afmoe", "1234567 ab", ["1", "234", "567", " ab"]),
    ("superbpe", "1234567 ab cd", ["1", "234", "567", " ab cd"]),
    ("deepseek-v3", "12345漢字かな ab", ["123", "45", "漢字かな", " ab"]),
    ("deepseek-coder", "ab 12漢", ["ab", " ", "1", "2", "漢"]),
    ("kimi-k2", "漢字abcDef's", ["漢字", "abc", "Def's"]),
    ("bloom", "a b, c", ["a", " b", ",", " c"]),
    ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
    ("ufakzeka", "Ali'nin", ["Ali", "'nin"]),
    ("jais-2", "a" + " " * 7 + "b", ["a", " " * 4, " " * 2, " b"]),
    ("minicpm5", "a1234 b", ["a", "123", "4", " b"]),
    ("exaone-moe", "a b c", ["a b c"]),
    ("chameleon", "IMGIMGABZ a1", ["IMGIMGABZ", " a", "1"]),
]


@pytest.mark.parametrize(("name", "text", "pieces"), FAMILY_CASES)
def test_families_cut_as_described(name, text, pieces):  # type: ignore[no-untyped-def]
    assert [piece for piece, _ in splitter(FAMILIES[name])(text)] == pieces


def small(tmp_path, model, tokens, **keys):  # type: ignore[no-untyped-def]
    """A tokenizer from a file written here."""
    path = tmp_path / "small.gguf"
    with Writer(path) as writer:
        writer.add("general.architecture", "llama")
        for key in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
            writer.add(f"llama.{key}", 32)
        writer.add("llama.attention.head_count", 4)
        writer.add("llama.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add("tokenizer.ggml.model", model)
        if tokens:
            writer.add("tokenizer.ggml.tokens", tokens)
        for key, value in keys.items():
            value = np.array(value, np.int32) if key == "token_type" else value
            writer.add(f"tokenizer.ggml.{key}", value)
    with open_gguf(path) as file:
        return load_tokenizer(file.metadata, path)


def agrees_with_llama_cpp(tmp_path, tokenizer, letters):  # type: ignore[no-untyped-def]
    """Same ids for random texts of a few letters, which come back; where the peer is installed."""
    peer = pytest.importorskip("llama_cpp")
    theirs = peer.Llama(str(tmp_path / "small.gguf"), vocab_only=True, verbose=False)
    rng = random.Random(letters)
    for _ in range(200):
        text = "".join(rng.choices(letters, k=rng.randrange(1, 20)))
        want = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert tokenizer.encode(text, add_special=False) == want, text
        assert tokenizer.decode(want) == text


def test_rwkv_takes_the_longest_token_at_each_byte(tmp_path):  # type: ignore[no-untyped-def]
    tokens = ["<s>", *(f"\\x{b:02x}" for b in range(256)), "ab", "abcd", "\\n\\n", "é", "\\\\x"]
    tokenizer = small(tmp_path, "rwkv", tokens)
    ids = tokenizer.encode("abcabcd\n\né\\x\x00")
    assert ids == [257, 0x63 + 1, 258, 259, 260, 261, 1]
    rng = random.Random(3)
    for _ in range(100):
        text = random_text(rng)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    agrees_with_llama_cpp(tmp_path, tokenizer, "abcd\né\\x")


def test_gemma_merges_characters_and_keeps_newlines_whole(tmp_path):  # type: ignore[no-untyped-def]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += ["\n", "\n\n", "▁", "a", "b", "ab", "▁ab", "▁▁"]
    types = [3, 3, 3, 2] + [6] * 256 + [1] * 8
    merges = ["a b", "▁ ab", "▁ ▁"]
    keys = {"token_type": types, "merges": merges, "bos_token_id": 2, "eos_token_id": 1}
    tokenizer = small(tmp_path, "gemma4", tokens, **keys)
    names = {name: i for i, name in enumerate(tokens)}
    ids = tokenizer.encode("ab ab\n\n  é\n\n\n")
    want = ["<bos>", "ab", "▁ab", "\n\n", "▁▁", "<0xC3>", "<0xA9>", "\n", "\n", "\n"]
    assert [tokens[i] for i in ids] == want[:7] + [tokens[i] for i in ids[7:]]
    assert tokenizer.decode(ids) == "ab ab\n\n  é\n\n\n"
    assert tokenizer.eog == {names["<eos>"]}
    agrees_with_llama_cpp(tmp_path, tokenizer, "aab  \né")


def test_kimi_without_merges_merges_by_the_order_of_its_vocabulary(tmp_path):  # type: ignore[no-untyped-def]
    tokens = ["a", "b", "c", "bc", "ab", "abc"]
    assert small(tmp_path, "gpt2", tokens, pre="kimi-k2").encode("abc") == [5]
    assert small(tmp_path, "gpt2", tokens[:5], pre="kimi-k2").encode("abc") == [0, 3]


def test_a_whitespace_vocabulary_splits_at_spaces(tmp_path):  # type: ignore[no-untyped-def]
    tokens = ["a", "b", "ab", "é"]
    keys = {"merges": ["a b"], "pre": "whitespace"}
    assert small(tmp_path, "whitespace", tokens, **keys).encode(" ab  é a") == [2, 3, 0]


def test_plamo_takes_the_cheapest_way_and_bytes_for_the_rest(tmp_path):  # type: ignore[no-untyped-def]
    tokens = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>"]
    tokens += [*(f"<0x{b:02X}>" for b in range(256)), "a", "b", "ab", "abc", "bc", "c "]
    keys = {
        "token_type": [2, 3, 3, 3] + [6] * 256 + [1] * 6,
        "scores": [0.0] * 260 + [-1.0, -1.0, -3.0, -9.0, -1.0, -0.5],
    }
    tokenizer = small(tmp_path, "plamo2", tokens, **keys)
    assert tokenizer.encode("abc", add_special=False) == [260, 264]
    assert tokenizer.encode("\ufeffabc é", add_special=False) == [260, 261, 265, 4 + 0xC3, 4 + 0xA9]
    agrees_with_llama_cpp(tmp_path, tokenizer, "abc é")


def test_an_unknown_pre_is_noted_and_a_broken_vocabulary_refused(tmp_path):  # type: ignore[no-untyped-def]
    keys = {"merges": ["a b"]}
    assert "missing" in small(tmp_path, "gpt2", ["a", "b", "ab"], **keys).notes[0]
    assert "'new'" in small(tmp_path, "gpt2", ["a", "b", "ab"], pre="new", **keys).notes[0]
    with pytest.raises(ModelFileError, match="not a known vocabulary"):
        small(tmp_path, "magic", ["a"])
    with pytest.raises(ModelFileError, match="tokens"):
        small(tmp_path, "llama", [])
    with pytest.raises(ModelFileError, match="merges"):
        small(tmp_path, "gpt2", ["a"], pre="qwen2")
    with pytest.raises(ModelFileError, match="one for each token"):
        small(tmp_path, "llama", ["a", "b"], scores=[0.5])
    with pytest.raises(ModelFileError, match="trie"):
        small(tmp_path, "t5", ["a"], precompiled_charsmap=[255, 255, 0, 0, 1])


ODD = [
    "",
    "<0xZZ>",
    "\\xq",
    "\\",
    "▁",
    "▁a▁b",
    "a b",
    "<s>",
    "\n",
    "é",
    "Ġ",
    "\U0010ffff",
    "<0x41>",
    "ab",
]


@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from(
        ["llama", "gpt2", "gemma4", "bert", "t5", "rwkv", "plamo2", "whitespace"]
    ),
    tokens=st.lists(st.sampled_from(ODD), min_size=1, max_size=12),
    data=st.data(),
)
def test_no_vocabulary_breaks_more_than_itself(tmp_path_factory, model, tokens, data):  # type: ignore[no-untyped-def]
    n = len(tokens)
    numbers = st.sampled_from([0.0, -1.5, float("nan"), float("inf")])
    keys = {
        "token_type": data.draw(st.lists(st.integers(-1, 8), min_size=n, max_size=n)),
        "scores": data.draw(st.lists(numbers, min_size=n, max_size=n)),
        "merges": data.draw(st.lists(st.sampled_from(["a b", "▁ a", "", " ", "x"]), min_size=1)),
        "bos_token_id": data.draw(st.integers(0, 2**31)),
        "precompiled_charsmap": data.draw(st.binary(min_size=1, max_size=40)),
        "add_bos_token": True,
    }
    keys["precompiled_charsmap"] = np.frombuffer(keys["precompiled_charsmap"], np.uint8)
    keys = {key: keys[key] for key in data.draw(st.sets(st.sampled_from(sorted(keys))))}
    if "merges" not in keys and model in ("gpt2", "gemma4", "whitespace"):
        keys["merges"] = ["a b"]
    try:
        tokenizer = small(tmp_path_factory.mktemp("odd"), model, tokens, **keys)
    except ModelFileError:
        return
    text = data.draw(st.text(max_size=20))
    ids = tokenizer.encode(text, parse_special=True)
    assert all(0 <= i < n for i in ids)
    tokenizer.decode(ids, skip_special=False)
    assert len(tokenizer.pieces) == n and all(i < n for i in tokenizer.eog)


def test_an_id_that_is_none_is_refused_by_name(shared):  # type: ignore[no-untyped-def]
    for i in (-1, 32000):
        with pytest.raises(BadRequest, match=f"{i} is not a token id from 0 to 31999"):
            tokenizer_of(shared, "llama-spm").decode([1, i])


def test_html_strikethrough_ends_no_generation(shared):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, "qwen2")
    assert tokenizer.find("</s>") not in tokenizer.eog
    assert {tokenizer.find("<|im_end|>"), tokenizer.find("<|endoftext|>")} == tokenizer.eog
    assert tokenizer_of(shared, "llama-spm").eog == {2}


def test_a_vocabulary_of_150000_tokens_is_ready_within_300_ms(shared):  # type: ignore[no-untyped-def]
    path, taken = shared / "vocab" / "ggml-vocab-qwen2.gguf", []
    for _ in range(4):
        start = time.process_time()
        with open_gguf(path) as file:
            assert load_tokenizer(file.metadata).encode("Hello world") == [9707, 1879]
        taken.append(time.process_time() - start)
    assert min(taken) < 0.3


@pytest.mark.parametrize("name", ["qwen2", "llama-spm", "bert-bge", "nomic-bert-moe"])
def test_a_long_prompt_takes_seconds_at_most(shared, name):  # type: ignore[no-untyped-def]
    rng = random.Random(5)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(1, 9))) for _ in range(3000)]
    text = " ".join(rng.choices(words, k=16_000))[:100_000]
    worst = "a" * 20_000 + "漢" * 5_000
    start = time.process_time()
    tokenizer_of(shared, name).encode(text + worst)
    assert time.process_time() - start < 4
