"""llama.cpp reads the built-in model too, and gives the same greedy tokens."""

import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

import llamoot
from llamoot.agents.files import BUILT_IN
from llamoot.agents.local import template_of
from llamoot.council.problems import problems

pytestmark = pytest.mark.peer

PROMPTS, TOKENS = 50, 40
# In a process of its own: a build of llama.cpp for another processor is killed by a signal.
PEER = """
import json, sys
import numpy as np
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=1024, n_threads=2, verbose=False, logits_all=False)
answers = []
for ids in json.load(sys.stdin):
    model.reset()
    todo, said = ids, []
    for _ in range(int(sys.argv[2])):
        model.eval(todo)
        logits = np.ctypeslib.as_array(model._ctx.get_logits_ith(-1), (model.n_vocab(),))
        todo = [int(np.argmax(logits))]
        said += todo
        if todo[0] == model.token_eos():
            break
    answers.append(said)
print(json.dumps(answers))
"""


def peers_tokens(prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of llama.cpp after each prompt; skips where it cannot run here."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    child = subprocess.run(
        [sys.executable, "-c", PEER, str(BUILT_IN), str(TOKENS)],
        input=json.dumps(prompts), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if child.returncode < 0:
        pytest.skip(f"llama.cpp was killed by signal {-child.returncode} on this processor")
    assert child.returncode == 0, child.stderr
    return [list(map(int, said)) for said in json.loads(child.stdout)]


@pytest.mark.skipif(not BUILT_IN.is_file(), reason="the built-in model is not in this tree")
def test_llama_cpp_gives_the_same_greedy_tokens() -> None:
    model = llamoot.load(BUILT_IN)
    asked = itertools.islice(problems(11, "test"), PROMPTS)
    prompts = []
    for problem in asked:
        prompt = template_of(model).render([{"role": "user", "content": problem.question}])
        prompts.append(model.tokenizer.encode_parts(prompt.parts, add_special=False))
    said = peers_tokens(prompts)
    assert len(said) == PROMPTS and all(said)
    # One pass over prompt and answer: the most likely token of each row is what greedy
    # decoding would say there, if it has said the same until there.
    for ids, theirs in zip(prompts, said):
        rows = model.logits([*ids, *theirs[:-1]])[len(ids) - 1 :]
        assert np.argmax(rows, axis=1).tolist() == theirs, model.detokenize(ids)
    model.close()
