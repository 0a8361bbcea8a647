"""Settings from recipes, files and options, by jsonargparse: later ones win, and what is not known is an error."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from carzero.errors import UserError
from carzero.train.config import Init, TrainConfig, Validation, flat_fields, one_of

#: Files of settings that come with the package: `--config published`.
RECIPES = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


@dataclass(frozen=True)
class Command:
    """What ``carzero train`` was asked for.

    Args:
        config: the run.
        resume: None: start anew; "auto": go on where there is a checkpoint; "must": there has to be one.
        print_config: print the settings and do nothing else.
    """

    config: TrainConfig
    resume: str | None
    print_config: bool


def command_parser() -> ArgumentParser:
    """The parser of ``carzero train``."""
    parser = _settings_parser()
    parser.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        action="append",
        default=[],
        help=f"recipe ({', '.join(RECIPES)}) or YAML or JSON file of settings; may be given several times, later win",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="must",
        default=None,
        choices=["auto", "must"],
        help="go on from the newest whole checkpoint in --out; auto: start anew where there is none",
    )
    parser.add_argument("--print-config", action="store_true", help="print all settings and stop")
    return parser


def parse_command(words: Sequence[str]) -> Command:
    """The run that these words of the command line ask for.

    Raises:
        UserError: a setting is unknown, of the wrong type or out of range, or a file cannot be read.
    """
    known = {f"--{name}" for name, *_ in flat_fields()}
    # --batch-size is --batch_size
    words = _bracketed([_underscores(word, known) for word in words])
    parser = command_parser()
    _check_options(parser, words)
    given = _parsed(parser, words)
    values: dict[str, Any] = {}
    for source in given.get("config") or []:
        values.update(_flatten(read_config(source)))
    values.update({name: given[name] for name, *_ in flat_fields() if name in given})
    return Command(_build(values), given.get("resume"), bool(given.get("print_config")))


def parse_mapping(values: Mapping[str, Any]) -> TrainConfig:
    """See `TrainConfig.from_mapping`; `values` may be nested or dotted."""
    return _build(_flatten(values))


def read_config(source: str | Path) -> dict[str, Any]:
    """The keys of a recipe or of a YAML or JSON file.

    Raises:
        UserError: there is no such recipe or file, or it does not hold keys and values.
    """
    import yaml

    path = RECIPES.get(str(source), Path(source))
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"train: cannot read the config file {path}: {error.strerror}. Recipes: {', '.join(RECIPES)}."
        ) from None
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"train: {path} is not valid JSON or YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"train: {path} must hold keys and values, got {type(values).__name__}.")
    return values


def to_yaml(config: TrainConfig) -> str:
    """All settings, as ``config.yaml`` holds them; `read_config` and `parse_mapping` give the same config back."""
    import yaml

    return yaml.safe_dump(config.as_dict(), sort_keys=False, default_flow_style=None, width=120)


class _Parser(ArgumentParser):
    """Errors are sentences of ours."""

    def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:  # type: ignore[override]
        raise UserError(f"train: {' '.join(message.split()).rstrip('.')}.")


def _settings_parser() -> ArgumentParser:
    parser = _Parser(prog="carzero train", description="Train on image-report pairs listed in a manifest.")
    for name, hint, default, text in flat_fields():
        shown = "" if default is dataclasses.MISSING or default is None else f" (default {default})"
        parser.add_argument(
            f"--{name}",
            type=hint,
            default=None if default is dataclasses.MISSING else default,
            # argparse reads % as a format
            help=(text + shown).replace("%", "%%"),
        )
    return parser


def _check_options(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Raise for an unknown option, with the nearest."""
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for word in words:
        name = word.split("=", 1)[0]
        if name.startswith("--"):
            one_of("option", name, options)


def _parsed(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    try:
        return parser.parse_args(words, defaults=False)
    except UserError as error:
        # of a wrong value the sentence that a file's value gets
        wrong = re.match(r'train: Parser key "([^"]+)":', str(error))
        hints = {name: hint for name, hint, *_ in flat_fields()}
        if wrong and wrong[1] in hints:
            option = f"--{wrong[1]}"
            values = [w.split("=", 1)[1] for w in words if w.startswith(f"{option}=")]
            values += [value for word, value in itertools.pairwise(words) if word == option]
            _typed(wrong[1], values[-1], hints[wrong[1]])
        raise


def _underscores(word: str, known: set[str]) -> str:
    name, equals, value = word.partition("=")
    plain = "--" + name[2:].replace("-", "_")
    return plain + equals + value if name.startswith("--") and plain in known else word


def _bracketed(words: list[str]) -> list[str]:
    """``--betas 0.9,0.98`` as ``--betas [0.9,0.98]``."""
    lists = {f"--{name}" for name, hint, *_ in flat_fields() if typing.get_origin(hint) in (list, tuple)}
    found = list(words)
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in lists and equals:
            found[place] = f"{option}={_list(value)}"
        elif option in lists and place + 1 < len(words):
            found[place + 1] = _list(words[place + 1])
    return found


def _list(value: str) -> str:
    return value if value.startswith("[") else f"[{value}]"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names; an unknown one is an error."""
    known = [name for name, *_ in flat_fields()]
    groups = {name.rsplit(".", 1)[0] for name in known if "." in name}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in groups:
            if not isinstance(value, Mapping):
                inside = ", ".join(n for n in known if n.startswith(f"{name}."))
                raise UserError(f"train: {name} holds the keys {inside}, got {value!r}.")
            flat.update(_flatten(value, f"{name}."))
        else:
            _known("key", name, known)
            flat[name] = value
    return flat


def _known(what: str, name: str, known: list[str]) -> None:
    if name in known:
        return
    # a last part that is nearly right counts as well: image for init.image
    ends = {n.rsplit(".", 1)[-1]: n for n in known}
    near = difflib.get_close_matches(name, known, 1, 0.5) or [
        ends[n] for n in difflib.get_close_matches(name.rsplit(".", 1)[-1], ends, 1, 0.6)
    ]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"train: unknown {what} {name!r}.{hint} Known: {', '.join(known)}.")


def _build(flat: Mapping[str, Any]) -> TrainConfig:
    missing = [n for n, _, default, _ in flat_fields() if default is dataclasses.MISSING and flat.get(n) is None]
    if missing:
        raise UserError(f"train: {' and '.join(missing)} must be given, as --{missing[0]} or in the config file.")
    hints = {name: hint for name, hint, *_ in flat_fields()}
    typed = {name: _typed(name, value, hints[name]) for name, value in flat.items()}
    parts = {kind: dict(_below(typed, kind)) for kind in ("init", "validation")}
    top = {name: value for name, value in typed.items() if "." not in name}
    return TrainConfig(**top, init=Init(**parts["init"]), validation=Validation(**parts["validation"]))


def _below(values: Mapping[str, Any], group: str) -> Iterator[tuple[str, Any]]:
    return ((n.split(".", 1)[1], v) for n, v in values.items() if n.startswith(f"{group}."))


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the setting's type, by jsonargparse's rules."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        one_of(name, value, options)
        return value
    parser = _Parser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_object({"value": value})["value"]
    except (UserError, TypeError, ValueError):
        raise UserError(f"train: {name} must be {_named(hint)}, got {value!r}.") from None


def _named(hint: Any) -> str:
    options = [o for o in typing.get_args(hint) if o is not type(None)]
    if typing.get_origin(hint) in (tuple, list, dict):
        return f"{typing.get_origin(hint).__name__} of {', '.join(_named(o) for o in options)}"
    return " or ".join(_named(o) for o in options) if options else getattr(hint, "__name__", str(hint))
