"""A tour of llamoot from the bottom up, in one screen. It runs in every test run.

python docs/tour.py
"""

import asyncio
import tempfile
from pathlib import Path

import numpy as np

import llamoot
from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ChatRequest, Message
from llamoot.council.answers import canonical, detect
from llamoot.council.flow import Reply as Heard
from llamoot.council.flow import Round, Seat
from llamoot.council.protocols import Case, vote
from llamoot.gguf.reader import open_gguf
from llamoot.gguf.types import TensorType
from llamoot.gguf.writer import Writer
from llamoot.quant.decode import decode
from llamoot.quant.encode import encode

# 1. A GGUF file is metadata and tensors. We write one and read it back.
path = Path(tempfile.mkdtemp()) / "tiny.gguf"
matrix = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 64)
with Writer(path) as out:
    out.add("general.architecture", "llama")
    out.declare("token_embd.weight", TensorType.Q8_0, matrix.shape)
    out.write(encode(matrix, TensorType.Q8_0))
with open_gguf(path) as file:
    tensor = file.tensors["token_embd.weight"]
    back = decode(tensor.raw, tensor.type, tensor.shape)
print(
    f"GGUF: {tensor.name} {tensor.type.name} {tensor.shape}, off by {abs(back - matrix).max():.4f}"
)


# 2. An agent is anything that answers a chat request with a stream.
async def listen() -> str:
    agent = ScriptedAgent("A", Reply(text="27 + 48 = 75"))
    request = ChatRequest(messages=(Message("user", "What is 27 + 48?"),))
    return "".join([token.text async for token in agent.chat(request)])


said = asyncio.run(listen())
print("agent:", said)

# 3. What was said is read in canonical form, by the kind of answer that was asked for.
kind = detect("What is 27 + 48?")
print("canonical:", canonical(said, kind), "and", canonical("The answer is 75.0", kind))

# 4. A protocol is a generator: it yields a round of questions and is sent the answers.
seats = (Seat("A"), Seat("B"), Seat("C"))
play = vote(
    Case(messages=(Message("user", "What is 27 + 48?"),), seats=seats, chairs=seats, kind=kind)
)
step = next(play)
while True:
    try:
        heard = [Heard("A", "75"), Heard("B", "it is 75"), Heard("C", "65")]
        step = play.send(heard if isinstance(step, Round) else None)
    except StopIteration as end:
        print("verdict:", end.value.text, f"with agreement {end.value.agreement:.2f}")
        break

# 5. A council puts it together: agents, a protocol, events, one answer.
council = llamoot.Council.open_sync(members=["abacus*3"], protocol="vote")
done = council.ask_sync("What is 27 + 48?")
council.close_sync()
print("council:", done.text, f"({done.calls} calls, {done.usage.completion_tokens} tokens)")
