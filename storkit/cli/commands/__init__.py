"""The table of commands: the parser, the man page and the completions derive from it. Examples: manual/examples.py.

It imports nothing but its parts, so that `storkit --help` costs what argparse costs.
"""

from storkit.cli.commands import fleets, guests, hosts, images, plans, storage
from storkit.cli.commands.words import GLOBAL as GLOBAL
from storkit.cli.commands.words import NOUNS as NOUNS
from storkit.cli.commands.words import Arg as Arg
from storkit.cli.commands.words import Command as Command

COMMANDS = (*hosts.COMMANDS, *storage.COMMANDS, *images.COMMANDS, *guests.COMMANDS, *fleets.COMMANDS, *plans.COMMANDS)
