"""Where a faster way does not work: one line says so, and the plain one goes on."""

import sys


def say_slower(what: str, why: str | Exception) -> None:
    reason = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
    print(f"{what}, which is slower: {' '.join(reason.split())[:200]}", file=sys.stderr)
