"""Commands whose settings are options: one typer application per package.

`Cli.command` gives a function every field of a settings model as a `--kebab-case` option, and `--config FILE` beside
them; the function gets the settings once all four places are read. `Cli.run` is the whole life of the process: it turns
every expected error into one line on standard error and an exit status (see `ingest.runtime.errors`).
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ingest.runtime.errors import CommandError, UsageError
from ingest.runtime.settings import Loaded, Settings, Surface, effective, is_secret, load, rendered_default, value_type

S = TypeVar("S", bound=Settings)

_OK = 0


class Cli:
    """The commands of one package.

    Args:
        program: how it is called, such as `python -m package`.
        summary: the first line of its help.
        surface: the settings that exist at all.
        prepare: called with the settings of a command before it begins; sets up logs.
    """

    def __init__(
        self, program: str, summary: str, *, surface: Surface, prepare: Callable[[Any], None] = lambda _settings: None
    ) -> None:
        self._program = program
        self._surface = surface
        self._prepare = prepare
        self._app = _new_app(summary)

    def group(self, name: str, summary: str) -> typer.Typer:
        """A command with commands of its own, for `under` of `command`."""
        app = _new_app(summary)
        self._app.add_typer(app, name=name)
        return app

    def command(
        self, model: type[S], name: str | None = None, *, under: typer.Typer | None = None
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Make a function a command. Its first parameter is the `Loaded` settings, the others are typer's."""

        def decorate(function: Callable[..., None]) -> Callable[..., None]:
            own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

            def invoke(ctx: typer.Context, config: Path | None, **given: Any) -> None:
                arguments = {parameter.name: given.pop(parameter.name) for parameter in own}
                loaded = load(model, self._surface, environ=ctx.obj, options=given, config_file=config)
                self._prepare(loaded.settings)
                function(loaded, **arguments)

            parameters = [
                inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
                *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
                _config_option(),
                *(option for field in self._surface.of(model) for option in _options(field, model.model_fields[field])),
            ]
            invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
            invoke.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
            invoke.__doc__ = function.__doc__
            (under or self._app).command(name or function.__name__)(invoke)
            return function

        return decorate

    def run(self, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
        """Run the command that the arguments name and return the exit status of the process."""
        try:
            result = self._app(args=list(arguments), prog_name=self._program, obj=environ, standalone_mode=False)
        except typer.TyperException as error:
            return _say(UsageError(error.format_message()))
        except CommandError as error:
            return _say(error)
        except BaseExceptionGroup as errors:
            known = errors.subgroup(CommandError)
            if known is None:
                raise
            return _say(_first(known))
        return result if isinstance(result, int) else _OK


def print_effective(surface: Surface, loaded: Loaded[S], decided: Mapping[str, str] | None = None) -> None:
    """Print name, value and origin of every setting of the command in three columns; secrets are hidden.

    Args:
        surface: the settings that exist at all.
        loaded: the settings of the command.
        decided: what a setting that is unset amounts to, by field name.
    """
    rows = [(name, value or "(unset)", origin) for name, value, origin in effective(surface, loaded, decided)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        typer.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


def _new_app(summary: str) -> typer.Typer:
    """Plain help, which is quick, and no tracebacks with local variables in them, which may be secrets."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback(help=summary)(_nothing)
    return app


def _nothing() -> None:
    """Make an application with one command ask for its name like one with many."""


def _say(error: CommandError) -> int:
    print("error:", " ".join(str(error).split()), file=sys.stderr)  # noqa: T201 what a command ends with
    return error.status


def _first(errors: BaseExceptionGroup[CommandError]) -> CommandError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error  # type: ignore[return-value]


def _config_option() -> inspect.Parameter:
    option = typer.Option("--config", metavar="FILE", help="TOML file with settings, names in lower case")
    return _keyword("config", Annotated[Path | None, option])


def _options(field: str, info: FieldInfo) -> list[inspect.Parameter]:
    """The option of a setting, and for a secret the one that names a file."""
    flag = "--" + field.replace("_", "-")
    kind = value_type(info)
    default = rendered_default(info)
    text = info.description or ""
    if default:
        text += f" [default: {default}]"
    if kind is bool:
        return [_keyword(field, Annotated[bool | None, typer.Option(f"{flag}/--no{flag[1:]}", help=text)])]
    if not is_secret(info):
        return [_keyword(field, Annotated[str | None, typer.Option(flag, metavar=_metavar(kind), help=text)])]
    text += "; others can see it here, better use the environment or a file"
    by_file = typer.Option(f"{flag}-file", metavar="FILE", help=f"file that holds what {flag} would say")
    return [
        _keyword(field, Annotated[str | None, typer.Option(flag, metavar="SECRET", help=text)]),
        _keyword(f"{field}_file", Annotated[str | None, by_file]),
    ]


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "LIST"
    return {int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
