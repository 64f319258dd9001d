"""Settings from the command line: `KEY=VALUE` read as YAML and set in the text of a params.yaml, comments kept."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from tasks import params
from tasks.errors import ParamsError

Overrides = Mapping[str, Any]
"""Dotted keys of params.yaml -> values."""


def override(text: str, overrides: Overrides, *, name: str) -> str:
    """The YAML `text` with dotted keys set and its comments kept. Raises ParamsError where it is not valid then."""
    plain = read_mapping(text, name)
    for key, value in overrides.items():
        _set(plain, key, value, name)
    params.parse(plain, name=name)  # before the editor, which writes some wrong values (an empty list) as broken YAML
    editor = YAML()
    editor.Representer = _Representer
    editor.width = 120
    editor.preserve_quotes = True
    document = editor.load(text)
    document = {} if document is None else document
    for key, value in overrides.items():
        _set(document, key, value, name)
    out = io.StringIO()
    editor.dump(document, out)
    params.parse(read_mapping(out.getvalue(), name), name=name)
    return out.getvalue()


class _Representer(RoundTripRepresenter):
    """Writes null as `null`, not as nothing, as the template does."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def parse_setting(text: str) -> tuple[str, Any]:
    """`train.iterations=200` -> ("train.iterations", 200); the value is YAML. Raises ParamsError."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key.strip()):
        raise ParamsError(f"--set {text}: write KEY=VALUE, for example train.iterations=200")
    try:
        return key.strip(), _number(yaml.safe_load(value))
    except yaml.YAMLError:
        raise ParamsError(f"--set {key}: {value!r} is not a YAML value: quote it, or write a list as [a, b]") from None


def read_mapping(text: str, name: str) -> dict[str, Any]:
    """The YAML mapping in `text`; `name` is where it came from. Raises ParamsError."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParamsError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ParamsError(f"{name}: expected a mapping, not {type(document).__name__}")
    return document


def get_setting(document: Any, key: str) -> Any:
    """The value at a dotted key; where there is none, an object that equals nothing."""
    for part in key.split("."):
        if not isinstance(document, dict) or part not in document:
            return object()
        document = document[part]
    return document


def _set(document: Any, key: str, value: Any, name: str) -> None:
    *parents, last = key.split(".")
    for part in parents:
        if document.get(part) is None:
            document[part] = {}
        document = document[part]
        if not isinstance(document, dict):
            raise ParamsError(f"{name}: {key}: {part} is a value, not a group of keys")
    document[last] = _quote(value)


def _quote(value: Any) -> Any:
    """Text with a colon in quotes: YAML readers do not agree on `[davis:/data]` without them, and DVC's refuses it."""
    if isinstance(value, list | tuple):
        return [_quote(item) for item in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) and ":" in value else value


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+", value):
        return float(value)
    return value
