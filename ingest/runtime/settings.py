"""Settings from four places, each value with the place it came from.

A command-line option counts more than the environment, that more than the TOML file, that more than the default. What
is wrong is a `UsageError` of one line that names the setting, where it came from, what it says and what it may say;
the value of a secret is never in it.

Models derive from `Settings`. Making one directly reads nothing but its arguments: the outside is read by `load` alone.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ingest.runtime.errors import UsageError

DEFAULT = "default"
HIDDEN = "(hidden)"
_FILE = "_file"
_SHOWN_CHARS_MAX = 60
_PLAIN_FLOAT_MAX = 1e6
_SECRET_FILE_CHARS_MAX = 65_536


class Settings(BaseSettings):
    """Base of the settings of a command: frozen, and unknown names are refused."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def is_explicit(self, name: str) -> bool:
        """Whether the field was set by anything but its default."""
        return name in self.model_fields_set

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but the arguments: see `load`."""
        return (init_settings,)


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """The settings that exist at all, those of other commands included.

    Attributes:
        prefix: of the names in the environment, such as `APP_`.
        fields: every setting by its field name.
    """

    prefix: str
    fields: Mapping[str, FieldInfo]

    def name(self, field: str) -> str:
        """The name in the environment."""
        return self.prefix + field.upper()

    def of(self, model: type[Settings]) -> list[str]:
        """The fields of a model in the order of the surface, which knows all of them."""
        strange = model.model_fields.keys() - self.fields.keys()
        if strange:
            raise ValueError(f"{model.__name__} has fields that are no settings: {sorted(strange)}")
        return [field for field in self.fields if field in model.model_fields]

    def refuse_unknown(self, field: str, spelling: Callable[[str], str], words: str) -> None:
        """Raise `UsageError` for a name that is neither a setting nor the file form of a secret."""
        forms = [*self.fields, *(name + _FILE for name, info in self.fields.items() if is_secret(info))]
        if field not in forms:
            meant = field.lower().removeprefix(self.prefix.lower())
            nearest = difflib.get_close_matches(meant, forms, n=1, cutoff=0)[0]
            raise UsageError(f"unknown setting {spelling(field)} in {words}; did you mean {spelling(nearest)}?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[S]):
    """Settings and, for each field, where its value came from."""

    settings: S
    origins: Mapping[str, str]


class _Place(PydanticBaseSettingsSource):
    """One place of settings: values by field name, a secret also by `<name>_file`."""

    def __init__(
        self, model: type[Settings], values: Mapping[str, object], words: str, spelling: Callable[[str], str]
    ) -> None:
        super().__init__(model)
        self._values = values
        self.words = words
        self.spelling = spelling

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The value (None: not here), the name it has here, and that it is no JSON."""
        value = self._values.get(field_name)
        file = self._values.get(field_name + _FILE) if is_secret(field) else None
        if file is None:
            return value, self.spelling(field_name), False
        by_file = self.spelling(field_name + _FILE)
        if value is not None:
            raise UsageError(f"{self.spelling(field_name)} and {by_file} are both set in {self.words}; use one of them")
        return _read_secret(Path(str(file)), by_file), by_file, False

    def __call__(self) -> dict[str, Any]:
        """Every field that is set here: value and name."""
        found = {name: self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items()}
        return {name: (value, key) for name, (value, key, _) in found.items() if value is not None}


def load(
    model: type[S],
    surface: Surface,
    *,
    environ: Mapping[str, str],
    options: Mapping[str, object] | None = None,
    config_file: Path | None = None,
) -> Loaded[S]:
    """Read the settings of a command from all places.

    Args:
        model: what the command uses.
        surface: what exists at all; a name outside it is refused.
        environ: the environment; an empty text in it means unset.
        options: command-line options by field name, None where not given.
        config_file: TOML file, names in lower case without prefix.

    Raises:
        UsageError: anything unknown, unreadable or wrong.
    """
    places = (
        _Place(model, options or {}, "the command line", lambda field: "--" + field.replace("_", "-")),
        _environment(model, surface, environ),
        _toml(model, surface, config_file),
    )
    values: dict[str, Any] = {}
    spelled: dict[str, tuple[str, str]] = {}
    for place in places:
        for field, (value, name) in place().items():
            if field not in values:
                values[field] = value
                spelled[field] = (name, place.words)
    try:
        settings = model(**values)
    except ValidationError as error:
        problems = [_problem(model, found, values, spelled) for found in error.errors(include_url=False)]
        raise UsageError("; ".join(dict.fromkeys(problems))) from None
    origins = {field: f"{spelled[field][1]}, {spelled[field][0]}" for field in values}
    return Loaded(settings=settings, origins={field: origins.get(field, DEFAULT) for field in model.model_fields})


def is_secret(field: FieldInfo) -> bool:
    """Whether the value must not be shown."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def value_type(field: FieldInfo) -> Any:
    """The type of a setting once it is set, without the None of those that may be unset."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(field.annotation) and len(kinds) == 1 else field.annotation


def rendered_default(field: FieldInfo) -> str:
    """The default as the environment would spell it, or the words that stand for one that is decided later."""
    return _extra(field, "default_text") or rendered(field, field.default)


def rendered(field: FieldInfo, value: object) -> str:
    """A value as the environment would spell it; nothing of a secret but a DSN without its password."""
    if isinstance(value, SecretStr):
        return without_password(value.get_secret_value()) if _extra(field, "dsn") else HIDDEN
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}" if value < _PLAIN_FLOAT_MAX else str(int(value))
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)


def without_password(dsn: str) -> str:
    """A connection URL whose passwords are hidden, in front of the host and among its parameters.

    One that is not written as a URL should be (a password with a bare `/`, `?` or `#`) is hidden as a whole.
    """
    try:
        parts = urlsplit(dsn)
    except ValueError:
        return HIDDEN
    login, at, place = parts.netloc.rpartition("@")
    user, colon, _password = login.partition(":")
    netloc = f"{user}:{HIDDEN}@{place}" if at and colon else parts.netloc
    query = "&".join(map(_hidden_parameter, parts.query.split("&")))
    if "@" in parts.path + query + parts.fragment:
        return HIDDEN
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def effective(
    surface: Surface, loaded: Loaded[S], decided: Mapping[str, str] | None = None
) -> list[tuple[str, str, str]]:
    """Name in the environment, value and origin of every setting, in the order of the surface; secrets hidden.

    Args:
        surface: what exists at all.
        loaded: settings of the command.
        decided: what a setting that is unset amounts to, by field name.
    """
    rows = []
    model = type(loaded.settings)
    for field in surface.of(model):
        value = rendered(model.model_fields[field], getattr(loaded.settings, field))
        if loaded.origins[field] == DEFAULT:
            value = (decided or {}).get(field) or rendered_default(model.model_fields[field])
        rows.append((surface.name(field), value, loaded.origins[field]))
    return rows


def _extra(field: FieldInfo, key: str) -> Any:
    return field.json_schema_extra.get(key) if isinstance(field.json_schema_extra, dict) else None


def _hidden_parameter(pair: str) -> str:
    name, equals, _value = pair.partition("=")
    return f"{name}={HIDDEN}" if equals and "pass" in unquote(name).lower() else pair


def allowed(field: FieldInfo) -> str:
    """What a setting may say, in words, for errors and help."""
    kind, rules = value_type(field), list(field.metadata)
    if get_origin(kind) is Annotated:
        kind, *nested = get_args(kind)
        rules += [rule for each in nested for rule in each.metadata]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _bounds(rules)
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
        return "comma-separated " + " or ".join(get_args(get_args(kind)[0]))
    return "a path" if kind is Path else "text"


def _bounds(rules: Iterable[object]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{text} {getattr(rule, bound):g}"
        if isinstance(getattr(rule, bound), float)
        else f"{text} {getattr(rule, bound)}"
        for bound, text in words.items()
        for rule in rules
        if getattr(rule, bound, None) is not None
    ]
    return " " + " and ".join(found) if found else ""


def _environment(model: type[Settings], surface: Surface, environ: Mapping[str, str]) -> _Place:
    words = "the environment"
    values = {}
    for name, value in environ.items():
        if name.startswith(surface.prefix):
            field = name.removeprefix(surface.prefix).lower()
            if name != surface.name(field):
                raise UsageError(f"unknown setting {name} in {words}; did you mean {surface.name(field)}?")
            surface.refuse_unknown(field, surface.name, words)
            values[field] = value
    return _Place(model, {field: value for field, value in values.items() if value != ""}, words, surface.name)


def _toml(model: type[Settings], surface: Surface, path: Path | None) -> _Place:
    words = f"the file {path}"
    if path is None:
        return _Place(model, {}, words, str)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path} is not TOML: {error}") from None
    for field in values:
        surface.refuse_unknown(field, str, words)
    return _Place(model, values, words, str)


def _read_secret(path: Path, name: str) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_SECRET_FILE_CHARS_MAX)
    except OSError as error:
        raise UsageError(f"{name}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name}: {path} is not UTF-8 text") from None
    return text.rstrip("\r\n")


def _problem(
    model: type[Settings],
    error: ErrorDetails,
    values: Mapping[str, object],
    spelled: Mapping[str, tuple[str, str]],
) -> str:
    """One sentence about one error of pydantic."""
    own_words = error["type"] == "value_error"
    why = str(error["ctx"]["error"]) if own_words else ""
    if not error["loc"]:
        return why or error["msg"]
    field = str(error["loc"][0])
    info = model.model_fields[field]
    name, words = spelled[field]
    said = "" if is_secret(info) else f" is {_quoted(values[field])} but"
    return f"{name} (from {words}){said} {why or 'needs ' + allowed(info)}"


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "..."
