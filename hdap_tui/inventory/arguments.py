"""What the arguments of an `ssh` say about a jump host."""

from __future__ import annotations

import shlex

_WITH_VALUE = frozenset("BbcDEeFIiJLlmOopQRSWw")
"""Options of ssh(1) that take a value."""


def jump_of_arguments(text: str) -> tuple[str, bool]:
    """Return the jump host of arguments such as ``-J bastion``, and whether there is another proxy.

    Known are -J, -o ProxyJump and a ProxyCommand that is nothing but ``ssh -W %h:%p bastion``.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        return "", "proxy" in text.lower()
    jump, other = "", False
    for option, value in _options(words)[0]:
        if option == "J":
            jump = jump or value
        if option != "o":
            continue
        key, _, said = value.replace("=", " ", 1).strip().partition(" ")
        said = said.strip().strip('"')
        if key.lower() == "proxyjump":
            jump = jump or said
        elif key.lower() == "proxycommand" and said.lower() != "none":
            jump = jump or jump_of_command(said)
            other = not jump
    return jump, other and not jump


def jump_of_command(command: str) -> str:
    """Return the jump host of ``ssh -W %h:%p [user@]bastion``; empty for any other command."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if not words or words[0].rpartition("/")[2] != "ssh":
        return ""
    options, rest = _options(words[1:])
    given = dict(options)
    if len(rest) != 1 or given.get("W", "") not in {"%h:%p", "[%h]:%p"}:
        return ""
    jump = rest[0]
    if "l" in given and "@" not in jump:
        jump = f"{given['l']}@{jump}"
    return f"{jump}:{given['p']}" if "p" in given else jump


def _options(words: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return options with their values, and the other words."""
    options: list[tuple[str, str]] = []
    rest: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        for index, letter in enumerate(word[1:], start=1):
            if letter in _WITH_VALUE:
                value = word[index + 1 :] or (words.pop(0) if words else "")
                options.append((letter, value))
                break
            options.append((letter, ""))
    return options, rest
