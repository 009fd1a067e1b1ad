"""Checks commands of deltaconv in a composition: `docker compose config --format json | container_commands.py docs/reference/cli.md`.

Each must be a command of the page, with flags that stand there. Ends with 1 and a line for each that isn't.
"""

import json
import re
import sys

PROGRAM = "deltaconv"


def sections(page):
    """The flags of each command, by its words."""
    found, words = {}, None
    for line in page.splitlines():
        if line.startswith(f"## {PROGRAM}"):
            words = tuple(line.removeprefix("## ").split()[1:])
            found[words] = set()
        elif words is not None and re.match(r"\s+(-\w, )?--", line):
            found[words].update(re.findall(r"--[a-z][a-z-]*", line))
    return found


def wrong(words, known):
    """What is wrong with a command, in words; None if nothing is."""
    named = max((path for path in known if tuple(words[: len(path)]) == path), key=len)
    if not named:
        return f"no command is called {words[0] if words else '(nothing)'}"
    flags = [word.split("=")[0] for word in words[len(named) :] if word.startswith("-")]
    missing = [flag for flag in flags if flag not in known[named] and flag not in ("--help", "-o")]
    return f"{' '.join(named)} has no {', '.join(missing)}" if missing else None


def commands(service):
    """What a service runs: its command, and how its health is asked for."""
    if PROGRAM in service.get("image", ""):
        yield service.get("command") or []
    test = (service.get("healthcheck") or {}).get("test") or []
    if test[1:2] == [PROGRAM]:
        yield test[2:]


def main():
    with open(sys.argv[1], encoding="utf-8") as page:
        known = sections(page.read())
    services = json.load(sys.stdin)["services"]
    complaints = [
        f"{name}: {complaint}"
        for name, service in services.items()
        for words in commands(service)
        if (complaint := wrong(words, known))
    ]
    print("\n".join(complaints), end="\n" if complaints else "")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
