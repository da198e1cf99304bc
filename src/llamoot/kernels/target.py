"""The processor that kernels are compiled for: this machine's, or one forced by the environment.

`LLAMOOT_CPU=x86-64-v3` compiles for that level whatever the machine has; `LLAMOOT_CPU_FEATURES`
adds or removes features by name ("-avx512f,+avx2"). Kernels ask `Target.has` which instructions
they may use; numba is told the same, so that a test may force any lowering this machine can run.
"""

from dataclasses import dataclass

import llvmlite.binding as llvm

from llamoot import env
from llamoot.errors import ConfigError

_V2 = ["cx16", "popcnt", "sahf", "sse3", "ssse3", "sse4.1", "sse4.2"]
_V3 = [*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"]
_V4 = [*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]
LEVELS = {
    "x86-64": [],
    "x86-64-v2": _V2,
    "x86-64-v3": _V3,
    "haswell": _V3,
    "x86-64-v4": _V4,
    "skylake-avx512": _V4,
    "generic": [],
}


@dataclass(frozen=True)
class Target:
    """A processor by LLVM's name and the features it has, by LLVM's names."""

    cpu: str
    features: frozenset[str]
    flags: str  # as LLVM takes them: "+avx2,-avx512f"

    @property
    def key(self) -> str:
        """One word that tells targets apart."""
        return f"{self.cpu}:{self.flags}"

    def has(self, *features: str) -> bool:
        """True if kernels may use all of these."""
        return self.features.issuperset(features)


def current() -> Target:
    """The target that the environment asks for; this machine's where it says nothing."""
    return parse(env.get("LLAMOOT_CPU"), env.get("LLAMOOT_CPU_FEATURES"))


def parse(cpu: str, flags: str) -> Target:
    """Target for an LLVM processor name ('' is this machine) and changes of its features."""
    if not cpu:
        host = llvm.get_host_cpu_features()
        have, base = {name for name, on in host.items() if on}, host.flatten()
    elif cpu in LEVELS:
        have, base = set(LEVELS[cpu]), ""
    else:
        known = ", ".join(LEVELS)
        raise ConfigError("environment", "LLAMOOT_CPU", f"'{cpu}' is not one of {known}")
    for flag in filter(None, (part.strip() for part in flags.split(","))):
        if flag[0] not in "+-":
            message = f"'{flag}' must begin with + or -"
            raise ConfigError("environment", "LLAMOOT_CPU_FEATURES", message)
        have = have | {flag[1:]} if flag[0] == "+" else _without(have, flag[1:])
    name = cpu or llvm.get_host_cpu_name()
    return Target(name, frozenset(have), ",".join(filter(None, (base, flags))))


def _without(have: set[str], feature: str) -> set[str]:
    """Removing a feature removes everything that stands on it, as LLVM does."""
    above = {
        "avx": ("avx", "fma", "f16c"),
        "avx2": ("avx2", "avx512", "avxvnni"),
        "avx512f": ("avx512",),
    }
    gone = {name for name in have if name.startswith(above.get(feature, (feature,)))}
    return have - gone
