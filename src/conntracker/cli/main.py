"""Entry point: finds the command, and turns every error into one clear line and an exit code."""

from __future__ import annotations

import importlib
import os
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import NoReturn

from conntracker import __version__
from conntracker.cli.common import say

# Command to (module, what it does). The capture is what the program does without a command.
COMMANDS = {
    "events": ("conntracker.cli.events", "print events as they come"),
    "show": ("conntracker.cli.show", "print, filter and sum up a recording"),
    "blame": ("conntracker.cli.blame", "say which rule let a flow through, dropped or rejected it"),
    "why": ("conntracker.cli.why", "say which rule decides about a packet, and why"),
    "audit": ("conntracker.cli.audit", "find rules that never decide, change nothing or admit too much"),
    "diff": ("conntracker.cli.diff", "say what changes from one ruleset to another, packet by packet"),
    "doctor": ("conntracker.cli.doctor", "say what this host lacks, and what to do"),
    "lab": ("conntracker.cli.lab", "a private router, client and server, with real traffic"),
}
CAPTURE = ("conntracker.cli.capture", "Log every TCP, UDP and ICMP flow that connection tracking sees.")

# 0 done, 1 the answer is no, 2 usage or bad input, 3 something is missing: privilege, kernel feature, library, room
BAD_INPUT, MISSING = 2, 3


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(BAD_INPUT, f"conntracker: {message} ('{self.prog} --help' lists what there is)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # numpy's linear algebra is never used here, and would start a busy thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_standard_streams()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return closed()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else BAD_INPUT
    except Exception as error:
        code, line = explain(error)
        if code is None:
            raise
        say(line)
        return code


def _open_standard_streams() -> None:
    """Where a standard stream was closed (2>&-), the next file opened would get its number, and our messages."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, os.fdopen(null, "r" if fd == 0 else "w", closefd=False))


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is not None and name not in COMMANDS:
        raise ValueError(f"no command {name!r}; there are: {', '.join(COMMANDS)}, and the capture without a command")
    module_name, purpose = COMMANDS[name] if name else CAPTURE
    module = importlib.import_module(module_name)
    prog = f"conntracker {name}" if name else "conntracker"
    parser = _Parser(prog=prog, description=purpose[0].upper() + purpose[1:], allow_abbrev=False)
    if name is None:
        parser.formatter_class = RawDescriptionHelpFormatter
        parser.epilog = "commands (conntracker COMMAND --help):\n" + "\n".join(
            f"  {command:<10} {text}" for command, (_, text) in COMMANDS.items()
        )
        parser.add_argument("--version", action="version", version=f"conntracker {__version__}")
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args(_joined(arguments[1:] if name else arguments)))
    return code


def _joined(arguments: list[str]) -> list[str]:
    """'--sort -bytes' as '--sort=-bytes': argparse takes whatever begins with '-' for an option."""
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1] == "--sort" and re.match("-[a-z]{2}", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def closed() -> int:
    """The reader of our output has seen enough: that is its right, and no error."""
    say("the output was closed before everything was written")
    # What Python still holds back for standard output has nowhere to go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def explain(error: Exception) -> tuple[int | None, str]:
    """(exit code, line) for an error that a user can do something about; (None, …) for a mistake of ours."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError):
        return _explain_system(error)
    if isinstance(error, ImportError):
        return MISSING, f"{text} ('conntracker doctor' says what to install)"
    if isinstance(error, ValueError):
        return BAD_INPUT, text
    return None, text


def _explain_system(error: OSError) -> tuple[int, str]:
    import errno

    said = error.strerror or str(error)
    line = f"{error.filename}: {said}" if error.filename else said
    if isinstance(error, PermissionError) and error.filename is None and "CAP_" not in line:
        line += " (needs CAP_NET_ADMIN: run as root)"
    wrong = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}
    return (BAD_INPUT if error.errno in wrong else MISSING), line


if __name__ == "__main__":
    sys.exit(main())
