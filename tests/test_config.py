"""llamoot.toml: strict, explained, and enough to open a council."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamoot import api
from llamoot.agents.catalog import open_agent
from llamoot.council.config import (
    AgentConf,
    CouncilConf,
    Endpoint,
    expand,
    explain,
    find,
    load,
    parse,
)
from llamoot.council.council import Council
from llamoot.council.panel import SAMPLE_TEMPERATURE, panel
from llamoot.errors import ConfigError

pytestmark = pytest.mark.pure

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))
GOOD = """
[endpoints.one]
base_url = "http://127.0.0.1:9/v1"
api_key_env = "SOME_KEY"
headers = { "x-team" = "red", "api-key" = "${SOME_KEY}" }
idle_timeout = 7
timeout = 50

[agents.ada]
endpoint = "one"
model = "ada-7b"
persona = "You doubt."
input_price = 1.5

[agents.bob]
model = "bob.gguf"

[councils.main]
members = ["ada", { agent = "ada", temperature = 0.3, timeout = 9 }, { agent = "bob", samples = 3 }]
synthesizer = "bob"
fallbacks = ["ada"]
quorum = 2
"""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    config = load(path)
    for name in config.councils:
        assert panel(config, name).places


@pytest.mark.parametrize(
    ("change", "key", "nearest"),
    [
        (("[councils.main]", "[councls.main]"), "councls", "councils"),
        (("quorum", "quorom"), "councils.main.quorom", "quorum"),
        (("base_url", "base_ur"), "endpoints.one.base_ur", "base_url"),
        (("persona", "personna"), "agents.ada.personna", "persona"),
        (("api_key_env", "api_key"), "endpoints.one.api_key", "api_key_env"),
        (("temperature", "temprature"), "councils.main.members[1].temprature", "temperature"),
        (('"bob", samples', '"bbo", samples'), "councils.main.members", "bob"),
        (('endpoint = "one"', 'endpoint = "onne"'), "councils.main.members", "one"),
        (("quorum = 2", 'protocol = "synthesise"'), "councils.main.protocol", "synthesize"),
        (("quorum = 2", 'kind = "nummber"'), "councils.main.kind", "number"),
        (("[endpoints.one]", 'default = "mian"\n[endpoints.one]'), "councils", "main"),
    ],
)
def test_a_misspelt_name_is_an_error_with_the_nearest(
    change: tuple[str, str], key: str, nearest: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(*change, 1), "x.toml")
    assert (caught.value.file, caught.value.key, caught.value.nearest) == ("x.toml", key, nearest)
    assert f"did you mean '{nearest}'?" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("quorum = 2", 'quorum = "two"'), "councils.main.quorum"),
        (("quorum = 2", "quorum = 9"), "councils.main.quorum"),
        (("quorum = 2", "threshold = 1.5"), "councils.main.threshold"),
        (("quorum = 2", "deadline = 0"), "councils.main.deadline"),
        (("quorum = 2", "min_rounds = 3\nmax_rounds = 2"), "councils.main.max_rounds"),
        (("temperature = 0.3", 'temperature = "hot"'), "councils.main.members[1].temperature"),
        (("samples = 3", "samples = 0"), "councils.main.members"),
        (('"${SOME_KEY}"', '"sk-123456"'), "endpoints.one.headers.api-key"),
        (("http://127", "http://me:secret@127"), "endpoints.one.base_url"),
        (("quorum = 2", "quorum ="), "syntax"),
        (('members = ["ada"', 'members = [{ persona = "x" }'), "councils.main.members"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_place(change: tuple[str, str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(*change, 1), "x.toml")
    assert caught.value.key == key


FIELDS = [
    (section, field)
    for section, kind in (
        ("endpoints.e", Endpoint), ("agents.a", AgentConf), ("councils.c", CouncilConf)
    )
    for field in kind.__struct_fields__
]  # fmt: skip


@given(where=st.sampled_from(FIELDS), place=st.integers(0, 30), char=st.sampled_from("qxz_"))
def test_no_key_can_be_misspelt_without_an_error(
    where: tuple[str, str], place: int, char: str
) -> None:
    section, field = where
    at = place % (len(field) + 1)
    wrong = field[:at] + char + field[at:]
    if (section, wrong) in FIELDS:
        return
    needed = {"endpoints.e": 'base_url = "http://x"', "councils.c": 'members = ["m"]'}
    text = f"[{section}]\n{needed.get(section, '')}\n{wrong} = 1\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.toml")
    assert caught.value.key == f"{section}.{wrong}"


@given(st.text(max_size=60))
def test_no_text_makes_parsing_raise_anything_else(text: str) -> None:
    try:
        parse(text, "x.toml")
    except ConfigError:
        return


def test_members_inherit_from_agents_and_endpoints_and_override() -> None:
    made = panel(parse(GOOD, "x.toml"))
    assert [p.label for p in made.places] == ["A", "B", "C", "D", "E"]
    a, b, c = made.places[:3]
    assert (a.spec.timeout, b.spec.timeout) == (50, 9) and a.spec.idle_timeout == 7
    assert b.sampling.temperature == 0.3 and b.persona == "You doubt." and b.input_price == 1.5
    assert c.sampling.temperature == SAMPLE_TEMPERATURE and c.logprobs and c.constrained
    assert (a.size, a.logprobs) == (7.0, False)
    assert made.chairs == ("C", "A", "B") and made.rules.quorum == 2


def test_headers_take_their_value_from_the_environment_and_records_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret-123")
    assert expand("Bearer ${SOME_KEY}") == "Bearer sk-secret-123"
    made = panel(parse(GOOD, "x.toml"))
    assert "sk-secret-123" not in repr(made)
    council = Council(made, open_agent)
    assert "sk-secret-123" not in repr(council.members(made)[0])
    asyncio.run(council.close())


def test_a_bare_member_is_a_model_unless_it_is_nearly_an_agent() -> None:
    made = panel(parse(GOOD.replace('["ada"', '["ada-lovelace-7b"', 1), "x.toml"))
    assert made.places[0].spec.model == "ada-lovelace-7b"
    rows = {k: o for k, _, o in explain(parse(GOOD.replace('["ada"', '["tiny.gguf"'), "x"))}
    assert rows["members[0].model"] == "x: councils.main.members[0]"
    longer = GOOD.replace("agents.ada", "agents.adelaide").replace('"ada"', '"adelaide"')
    with pytest.raises(ConfigError, match="did you mean 'adelaide'"):
        parse(longer.replace('["adelaide"', '["adelaid"'), "x.toml")


def test_explain_names_value_and_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret-123")
    rows = {key: (value, origin) for key, value, origin in explain(parse(GOOD, "x.toml"))}
    assert rows["quorum"] == (2, "x.toml: councils.main")
    assert rows["threshold"] == (0.9, "default")
    assert rows["members[1].temperature"] == (0.3, "x.toml: councils.main.members[1]")
    assert rows["members[1].persona"] == ("You doubt.", "x.toml: agents.ada")
    assert rows["members[0].base_url"][1] == "x.toml: endpoints.one"
    assert rows["members[0].api_key_env"][0] == "SOME_KEY (set)"
    assert "sk-secret" not in repr(rows)


def test_the_file_is_looked_for_in_the_stated_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tmp_path / "xdg" / "llamoot" / "llamoot.toml"
    user.parent.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    assert find() is None
    user.write_text("")
    assert find() == user
    (tmp_path / "llamoot.toml").write_text("")
    assert find() == tmp_path / "llamoot.toml"
    monkeypatch.setenv("LLAMOOT_CONFIG", "elsewhere.toml")
    assert find() == Path("elsewhere.toml") and find("named.toml") == Path("named.toml")


def test_a_missing_file_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*cannot be read"):
        load("nowhere.toml")


def test_a_local_model_is_sized_by_its_file_where_its_name_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "plain.gguf").write_bytes(b"G" * 1000)
    config = asyncio.run(api.configure(None, [str(tmp_path / "plain.gguf"), "gone.gguf"]))
    sizes = [place.size for place in api.panel(config).places]
    assert sizes == [pytest.approx(1.7e-6), None]


def test_members_can_be_named_in_a_word() -> None:
    config = parse(GOOD, "x.toml")
    assert api.member("ada*2", config) == AgentConf(agent="ada", samples=2)
    assert api.member("tiny.gguf*4", config) == AgentConf(model="tiny.gguf", samples=4)
    made = api.member("http://127.0.0.1:8000/v1#qwen", config)
    assert (made.base_url, made.model, made.api_key_env) == ("http://127.0.0.1:8000/v1", "qwen", "")


def test_words_and_changes_make_a_council(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    members = ["http://127.0.0.1:8000/v1#qwen", "http://127.0.0.1:8000/v1#gemma"]
    config = asyncio.run(api.configure(None, members, protocol="vote", samples=2, deadline=5))
    made = panel(config)
    assert [p.spec.model for p in made.places] == ["qwen", "qwen", "gemma", "gemma"]
    assert (made.protocol, made.rules.deadline) == ("vote", 5)
    with pytest.raises(ConfigError, match="did you mean 'vote'"):
        asyncio.run(api.configure(None, members, protocol="votes"))
