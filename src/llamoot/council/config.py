"""llamoot.toml: endpoints, agents, councils. Strict: a key that is not known is an error.

Keys of endpoints are never written here: `api_key_env` names the variable that holds one, and a
header may take a variable's value as "${NAME}".
"""

import difflib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from llamoot import env
from llamoot.council.protocols import PROTOCOLS
from llamoot.errors import ConfigError

NAME = "llamoot.toml"
_KINDS = ("number", "choice", "boolean", "span", "json", "code", "text")


class Endpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[endpoints.NAME]: an OpenAI-compatible server. Timers are seconds."""

    base_url: str
    api_key_env: str = ""
    headers: dict[str, str] = {}
    proxy: str = ""
    ca_file: str = ""
    connect_timeout: float | None = None
    write_timeout: float | None = None
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    timeout: float | None = None
    retries: int | None = None


class AgentConf(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[agents.NAME] or an entry of `members`: a model, at an endpoint or in a file, and its role.

    `samples` seats it several times; prices are money per million tokens; `size` is in billions
    of parameters; `script` makes a scripted agent that gives these answers in turn.
    """

    agent: str = ""  # in `members`: start from this entry of [agents]
    endpoint: str = ""
    model: str = ""
    base_url: str = ""
    api_key_env: str = ""
    persona: str = ""
    samples: int = 1
    weight: float = 1.0
    size: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    timeout: float | None = None
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    context_length: int | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    logprobs: bool | None = None
    constrained: bool | None = None
    script: tuple[str, ...] = ()


class CouncilConf(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[councils.NAME]: who sits, who writes, and the rules."""

    members: tuple[str | AgentConf, ...]
    description: str = ""
    protocol: str = "auto"
    synthesizer: str | AgentConf | None = None
    fallbacks: tuple[str | AgentConf, ...] = ()
    kind: str = ""
    quorum: int | None = None
    deadline: float = 300.0
    grace: float | None = None
    reserve: float = 0.3
    min_rounds: int = 1
    max_rounds: int = 2
    threshold: float = 0.9
    layers: int = 1
    early_stop: bool = True
    freeze: bool = True
    seed: int | None = None
    embedder: str | AgentConf | None = None
    max_total_tokens: int | None = None
    max_seconds: float | None = None
    max_cost: float | None = None


class Config(Struct, frozen=True, kw_only=True):
    """A whole file; `origin` is the file, or a sentence that says where it comes from."""

    origin: str = ""
    default: str = ""
    endpoints: dict[str, Endpoint] = {}
    agents: dict[str, AgentConf] = {}
    councils: dict[str, CouncilConf] = {}

    def council(self, name: str = "") -> tuple[str, CouncilConf]:
        """The council of that name, or the default one (`default`, else the first)."""
        name = name or self.default or next(iter(self.councils), "")
        if name not in self.councils:
            message = f"there is no council '{name}'" if name else "it defines no council"
            raise ConfigError(self.origin, "councils", message, nearest(name, self.councils))
        return name, self.councils[name]


def nearest(word: str, known: Iterable[str], likeness: float = 0.5) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, list(known), 1, likeness)), None)


def find(path: str | Path | None = None) -> Path | None:
    """The file to use: the one named, LLAMOOT_CONFIG, ./llamoot.toml, then the user's."""
    chosen = path or env.get("LLAMOOT_CONFIG")
    if chosen:
        return Path(chosen)
    for folder in (Path.cwd(), env.config_folder()):
        if (folder / NAME).is_file():
            return folder / NAME
    return None


def load(path: str | Path) -> Config:
    """Read and check a file. Raises ConfigError with file, key and the nearest valid key."""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(path, "file", f"cannot be read: {why}") from None
    return parse(text, str(path))


def parse(text: str, origin: str) -> Config:
    """The configuration in `text`, checked."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(origin, "syntax", str(error)) from None
    _known(raw, ("default", "endpoints", "agents", "councils"), "", origin)
    config = Config(
        origin=origin,
        default=str(raw.get("default", "")),
        endpoints=_tables(raw, "endpoints", Endpoint, origin),
        agents=_tables(raw, "agents", AgentConf, origin),
        councils=_tables(raw, "councils", CouncilConf, origin),
    )
    check(config)
    return config


def _tables(raw: dict[str, Any], section: str, kind: type[Any], origin: str) -> dict[str, Any]:
    tables = raw.get(section, {})
    if not isinstance(tables, dict):
        raise ConfigError(origin, section, f"must be tables such as [{section}.name]")
    made = {}
    for name, table in tables.items():
        where = f"{section}.{name}"
        if not isinstance(table, dict):
            raise ConfigError(origin, where, "must be a table")
        _known(table, kind.__struct_fields__, where, origin)
        for key in ("members", "fallbacks", "synthesizer", "embedder"):
            inner = table.get(key) if kind is CouncilConf else None
            for i, entry in enumerate(inner if isinstance(inner, list) else [inner]):
                if isinstance(entry, dict):
                    spot = f"{where}.{key}[{i}]" if isinstance(inner, list) else f"{where}.{key}"
                    _known(entry, AgentConf.__struct_fields__, spot, origin)
        try:
            made[name] = msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            message, _, at = str(error).partition(" - at `$")
            raise ConfigError(origin, where + at.rstrip("`"), message) from None
    return made


def _known(table: dict[str, Any], keys: Iterable[str], where: str, origin: str) -> None:
    for key in table:
        if key not in keys:
            spot = f"{where}.{key}" if where else key
            raise ConfigError(origin, spot, "this key is not known", nearest(key, keys))


def check(config: Config) -> None:
    """References and ranges that types cannot say."""
    if config.default and config.default not in config.councils:
        config.council(config.default)
    for name, end in config.endpoints.items():
        for header, value in end.headers.items():
            if re.search("auth|key|token|cookie", header, re.I) and "${" not in value:
                message = 'must not hold a key; name a variable: "${NAME}"'
                raise ConfigError(config.origin, f"endpoints.{name}.headers.{header}", message)
        if re.search(r"//[^/]*@", end.base_url):
            message = "must not hold a password; use api_key_env or a header"
            raise ConfigError(config.origin, f"endpoints.{name}.base_url", message)
    for name, conf in config.councils.items():
        where = f"councils.{name}"
        _one_of(config, f"{where}.protocol", conf.protocol, PROTOCOLS)
        _one_of(config, f"{where}.kind", conf.kind, ("", *_KINDS))
        if not conf.members:
            raise ConfigError(config.origin, f"{where}.members", "needs at least one member")
        seats = sum(max(resolve(config, m, f"{where}.members").samples, 1) for m in conf.members)
        for other in (conf.synthesizer, *conf.fallbacks, conf.embedder):
            if other is not None:
                resolve(config, other, where)
        for key, low, high in (
            ("quorum", 1, seats),
            ("reserve", 0, 0.9),
            ("min_rounds", 1, 20),
            ("max_rounds", conf.min_rounds, 20),
            ("threshold", 0, 1),
            ("layers", 1, 10),
            ("deadline", 0.01, 1e6),
            ("grace", 0, 1e6),
        ):
            value = getattr(conf, key)
            if value is not None and not low <= value <= high:
                message = f"is {value}, which is not between {low:g} and {high:g}"
                raise ConfigError(config.origin, f"{where}.{key}", message)


def _one_of(config: Config, where: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        valid = ", ".join(k for k in known if k)
        message = f"'{value}' is not one of {valid}"
        raise ConfigError(config.origin, where, message, nearest(value, known))


def resolve(config: Config, entry: str | AgentConf, where: str) -> AgentConf:
    """An entry of `members` with everything it inherits from [agents] filled in.

    A bare string is the name of an agent, or a model: a GGUF file or a catalogue name.
    """
    name = entry if isinstance(entry, str) else entry.agent
    base = config.agents.get(name)
    if base is None and name:
        explicit = not isinstance(entry, str)
        # A bare word may be a model's name; only one very like an agent's is a slip of the pen.
        guess = nearest(name, config.agents, 0.5 if explicit else 0.75)
        if explicit or (guess and "/" not in name and not name.endswith(".gguf")):
            raise ConfigError(config.origin, where, f"there is no agent '{name}'", guess)
        base = AgentConf(model=name)
    made = base or AgentConf()
    if isinstance(entry, AgentConf):
        own = {f: v for f in AgentConf.__struct_fields__ if (v := getattr(entry, f)) != _BLANK[f]}
        made = msgspec.structs.replace(made, **own)
    if made.endpoint and made.endpoint not in config.endpoints:
        guess = nearest(made.endpoint, config.endpoints)
        raise ConfigError(config.origin, where, f"there is no endpoint '{made.endpoint}'", guess)
    if not (made.model or made.endpoint or made.base_url or made.script):
        raise ConfigError(config.origin, where, "a member needs agent, model, endpoint or script")
    if made.samples < 1:
        raise ConfigError(config.origin, where, f"samples is {made.samples}; it must be at least 1")
    return msgspec.structs.replace(made, agent=name if base is not None else "")


_BLANK = {f: getattr(AgentConf(), f) for f in AgentConf.__struct_fields__}


def explain(config: Config, name: str = "") -> list[tuple[str, Any, str]]:
    """Each setting of a council: key, value, and where the value comes from."""
    name, conf = config.council(name)
    blank = CouncilConf(members=())
    rows: list[tuple[str, Any, str]] = []
    for key in CouncilConf.__struct_fields__:
        value = getattr(conf, key)
        if key == "members":
            continue
        default = value == getattr(blank, key)
        rows.append((key, value, "default" if default else f"{config.origin}: councils.{name}"))
    for i, entry in enumerate(conf.members):
        made = resolve(config, entry, f"councils.{name}.members[{i}]")
        inherited = config.agents.get(made.agent, AgentConf())
        endpoint = config.endpoints.get(made.endpoint)
        for key in AgentConf.__struct_fields__:
            value = getattr(made, key)
            if value == _BLANK[key] or key == "agent":
                continue
            mine = isinstance(entry, AgentConf) and getattr(entry, key) == value
            place = f"councils.{name}.members[{i}]" if mine else f"agents.{made.agent}"
            known = mine or getattr(inherited, key) == value
            place = place if known else f"councils.{name}.members[{i}]"
            rows.append((f"members[{i}].{key}", value, f"{config.origin}: {place}"))
        if endpoint is not None:
            origin = f"{config.origin}: endpoints.{made.endpoint}"
            rows.append((f"members[{i}].base_url", endpoint.base_url, origin))
            if endpoint.api_key_env:
                state = "set" if env.secret(endpoint.api_key_env) else "not set"
                rows.append(
                    (f"members[{i}].api_key_env", f"{endpoint.api_key_env} ({state})", origin)
                )
    return rows


def expand(text: str) -> str:
    """`text` with each ${NAME} replaced by that variable."""
    return re.sub(r"\$\{(\w+)\}", lambda found: env.secret(found[1]), text)
