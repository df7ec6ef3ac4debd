"""How commands are found and shown: one file of this folder is one command.

A command file has a module-level function `command` (or `app`, a `typer.Typer` with commands of
its own), and the first line of its docstring is its help. It is imported when it is called:
`rrd --help` reads sources only.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer._click.core import Context, Parameter
from typer._click.formatting import HelpFormatter
from typer._click.shell_completion import CompletionItem
from typer.core import TyperCommand, TyperGroup, TyperOption

from ..core.errors import UserError, did_you_mean

ORDER = (
    "quickstart",
    "train",
    "attack",
    "eval",
    "report",
    "reproduce",
    "diff",
    "check",
    "list",
    "info",
    "data",
)
CONTEXT = {"help_option_names": ["--help", "-h"], "max_content_width": 100}
_FOLDER = Path(__file__).parent
_DOCSTRING = re.compile(r'\A(?:\s|#[^\n]*\n)*[rR]?"""(.*?)"""', re.DOTALL)
_COMMAND = re.compile(r"^(?:def (command)\(|(app)\s*(?::[^=\n]+)?=)", re.MULTILINE)


@dataclass(frozen=True)
class Head:
    """A command as its source shows it: `attribute` is `command` or `app`."""

    name: str
    summary: str
    attribute: str


def heads(folder: Path = _FOLDER) -> dict[str, Head]:
    """The commands of a folder in the order of the help; files without one are helpers."""
    found = {}
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        command = _COMMAND.search(text)
        if command and not path.name.startswith("_"):
            name = path.stem.replace("_", "-")
            summary = _docstring(text).partition("\n")[0].strip()
            found[name] = Head(name, summary, command[1] or command[2])
    rank = {name: place for place, name in enumerate(ORDER)}
    return {name: found[name] for name in sorted(found, key=lambda n: (rank.get(n, 99), n))}


class Command(TyperCommand):
    """A command whose help keeps the docstring's lines and shows options by theme."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """The parameters, simple ones with converters of ours."""
        return _plainly(super().get_params(ctx))

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """An option whose metavar is in brackets may stand without a value."""
        loose = {
            name
            for param in self.get_params(ctx)
            if str(getattr(param, "metavar", None)).startswith("[")
            and param.param_type_name == "option"
            for name in param.opts
        }
        filled: list[str] = []
        for position, arg in enumerate(args):
            filled.append(arg)
            follower = args[position + 1] if position + 1 < len(args) else "-"
            if arg in loose and not re.match(r"-?[.\d]", follower):
                filled.append("")
        return super().parse_args(ctx, filled)

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Arguments as NAME, optional ones as [NAME]."""
        return [
            piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)
        ]

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The text of the help, line for line."""
        _write_text(self.help, formatter)

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Arguments, then options by their `rich_help_panel`, common ones last."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = "Options"
                if param.param_type_name == "argument":
                    kind, record = "Arguments", (record[0].split(" <")[0], record[1])
                theme = getattr(param, "rich_help_panel", None) or kind
                sections.setdefault(theme, []).append(record)
        common = sections.pop("Common options", [])
        # --help comes last of all, wherever the common options are.
        if common and sections["Options"]:
            common.append(sections["Options"].pop())
        for title, records in {**sections, "Common options": common}.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(TyperGroup):
    """A group with our help and our errors."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """The parameters, simple ones with converters of ours."""
        return _plainly(super().get_params(ctx))

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Without a command: one sentence, not a page."""
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            names = ", ".join(self.list_commands(ctx))
            raise UserError(f"{ctx.command_path} needs a command", hint=f"one of {names}")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that `args` begin with; an unknown one gets near names."""
        if args and not ctx.resilient_parsing and not args[0].startswith("-"):
            names = self.list_commands(ctx)
            if args[0] not in names:
                hint = did_you_mean(args[0], names, f"{ctx.command_path} --help")
                raise UserError(f"unknown command {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_help_text(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The text of the help, line for line."""
        _write_text(self.help, formatter)


class RootGroup(Group):
    """The group of all command files: sources for the list, imports for the one that runs."""

    def list_commands(self, ctx: Context) -> list[str]:
        """The names of the commands, in the order of the help."""
        return list(heads())

    def get_command(self, ctx: Context, cmd_name: str) -> Any:
        """The command itself: imports its file."""
        head = heads().get(cmd_name)
        return None if head is None else build(head)

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """The commands first, then the few options."""
        rows = [(head.name, head.summary) for head in heads().values()]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
        records = [param.get_help_record(ctx) for param in self.get_params(ctx)]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record is not None])

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        """Completion of command names, without importing a command."""
        if incomplete.startswith("-"):
            return super(TyperGroup, self).shell_complete(ctx, incomplete)
        found = [head for head in heads().values() if head.name.startswith(incomplete)]
        return [CompletionItem(head.name, help=head.summary) for head in found]


def build(head: Head) -> Any:
    """The command of a head: its file imported, its function made a command."""
    module = importlib.import_module(f"{__package__}.{head.name.replace('-', '_')}")
    target = getattr(module, head.attribute)
    holder = typer.Typer(add_completion=False, rich_markup_mode=None)
    text = module.__doc__ or ""
    if head.attribute == "command":
        settings = dict(CONTEXT)
        holder.command(head.name, cls=Command, help=text, context_settings=settings)(target)
        return typer.main.get_command(holder)
    for info in target.registered_commands:
        info.cls = Command
        info.context_settings = {**CONTEXT, **(info.context_settings or {})}
    holder.add_typer(target, name=head.name, cls=Group, help=text, context_settings=dict(CONTEXT))
    return typer.main.get_group(holder).commands[head.name]


class _Plain:
    """Conversion of one parameter of a simple type.

    typer converts with pydantic, whose import takes longer than all of `rrd list`; texts, numbers
    and paths need none of it, and get messages of ours.
    """

    def __init__(self, convert: Callable[[str], Any], what: str) -> None:
        self.convert, self.what = convert, what

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The interface of typer's own converters."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if several:
            return tuple(self._one(item, param, ctx) for item in value)
        return self._one(value, param, ctx)

    def _one(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            result = self.convert(value)
        except (TypeError, ValueError):
            raise typer.BadParameter(f"{value} is not {self.what}", ctx=ctx, param=param) from None
        if param.min is not None and result < param.min:
            raise typer.BadParameter(f"{value} is less than {param.min}", ctx=ctx, param=param)
        if param.max is not None and result > param.max:
            raise typer.BadParameter(f"{value} is more than {param.max}", ctx=ctx, param=param)
        return result


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


_PLAIN: dict[Any, _Plain] = {
    str: _Plain(str, "a text"),
    int: _Plain(int, "a whole number"),
    float: _Plain(float, "a number"),
    bool: _Plain(_truth, "true or false"),
    Path: _Plain(Path, "a path"),
}
_PLAIN.update({list[kind]: _PLAIN[kind] for kind in (str, int, float, Path)})  # type: ignore[valid-type]
_CHECKS = ("parser", "exists", "resolve_path", "writable")


def _plainly(params: list[Parameter]) -> list[Parameter]:
    """Replace typer's converters where the type is simple; elsewhere they stay."""
    for param in params:
        descriptor = getattr(param, "type_descriptor", None)
        if descriptor is None or descriptor.is_choice:
            continue
        plain = _PLAIN.get(descriptor.annotation)
        if plain and not any(getattr(descriptor.parameter_info, check, None) for check in _CHECKS):
            param._runtime_param = plain  # type: ignore[attr-defined]
    return params


def _docstring(text: str) -> str:
    match = _DOCSTRING.match(text)
    return match[1].strip() if match else ""


def _write_text(text: str | None, formatter: HelpFormatter) -> None:
    lines: Sequence[str] = (text or "").strip().splitlines()
    if lines:
        formatter.write("\n")
        formatter.write("".join(f"  {line}".rstrip() + "\n" for line in lines))


def option_names(command: Any, ctx: Any) -> list[str]:
    """All option names of a command (for near names)."""
    params = [param for param in command.get_params(ctx) if isinstance(param, TyperOption)]
    return [name for param in params for name in (*param.opts, *param.secondary_opts)]
