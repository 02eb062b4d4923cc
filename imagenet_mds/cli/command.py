"""What all commands share: how their arguments are parsed."""

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperOption

from imagenet_mds.errors import UserError


class Command(TyperCommand):
    """A command that refuses empty values.

    As a path, an empty string is the current folder, and it is what a shell passes for a variable that is not set.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name, as typed: a `Path` no longer shows that it was empty.

        Raises:
            UserError: the value of an option or an argument is empty.
        """
        if ctx.resilient_parsing:  # the shell asks what may come next: no message may appear at its prompt
            return super().parse_args(ctx, args)
        values, _, _ = self.make_parser(ctx).parse_args(list(args))
        for parameter in self.params:
            value = values.get(parameter.name)
            if "" in (value if isinstance(value, list | tuple) else (value,)):
                assert isinstance(parameter, TyperArgument | TyperOption)
                hint = "pass a value" if parameter.required else "pass a value, or leave it out"
                raise UserError(f"{_name(parameter)} is empty: {hint}")
        return super().parse_args(ctx, args)


def _name(parameter: TyperArgument | TyperOption) -> str:
    """The name of a parameter as the help of its command has it."""
    if isinstance(parameter, TyperOption):
        return parameter.opts[0]
    return parameter.metavar or parameter.opts[0].upper()
