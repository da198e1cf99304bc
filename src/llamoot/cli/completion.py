"""`llamoot completion`: what a shell needs to complete verbs and options."""

from typing import Annotated

from llamoot.cli.main import VERBS, function
from llamoot.cli.options import Argument, parameters
from llamoot.errors import BadRequest

_BASH = """\
_llamoot() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="{verbs}"; else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _llamoot llamoot
"""
_FISH = "complete -c llamoot -n '__fish_use_subcommand' -f -a {verb} -d '{sentence}'"


def completion(
    shell: Annotated[str, Argument(help="bash, zsh or fish")] = "bash",
) -> None:
    """Print a script; for bash: eval "$(llamoot completion bash)" in ~/.bashrc."""
    if shell == "fish":
        for verb, sentence in VERBS.items():
            print(_FISH.format(verb=verb, sentence=sentence.replace("'", "\\'")))
            for option in _options(verb):
                seen = f"'__fish_seen_subcommand_from {verb}'"
                print(f"complete -c llamoot -n {seen} -l {option.removeprefix('--')}")
        return
    if shell not in ("bash", "zsh"):
        raise BadRequest(f"there is no script for '{shell}'; bash, zsh and fish are known", "shell")
    cases = "\n".join(f'      {verb}) words="{" ".join(_options(verb))}" ;;' for verb in VERBS)
    if shell == "zsh":
        print("autoload -Uz bashcompinit && bashcompinit")
    print(_BASH.format(verbs=" ".join(VERBS), cases=cases), end="")


def _options(verb: str) -> list[str]:
    """The long options of a verb."""
    return [
        name
        for parameter in parameters(function(verb))
        for name in (*parameter.names, *parameter.negatives)
        if name.startswith("--")
    ]
