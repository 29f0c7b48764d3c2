"""What goes wrong, in one line, and with which exit code a command ends."""

import functools
import sys
from collections.abc import Callable

from lab.checkpoint import Lost
from lab.terminal import graceful_interrupt
from store.files import UserError, one_line
from store.trained import is_out_of_memory
from training import Diverged


def in_words(error: BaseException) -> str:
    """Why a run failed, in one line."""
    if is_out_of_memory(error):
        return one_line(f"no memory: {str(error) or 'the system has no more'}")
    told = isinstance(error, Diverged | Lost)
    return one_line(str(error) if told else f"{type(error).__name__}: {error}")


def is_out_of_threads(error: BaseException) -> bool:
    """Whether the system starts no more threads or processes, which is no fault of a run."""
    text = str(error).lower()
    return "can't start new thread" in text or "resource temporarily unavailable" in text


NO_THREADS = ("the system starts no more threads or processes; end some, or raise the limit "
              "(ulimit -u), and run the same command again")


def in_one_line(command: Callable[..., int]) -> Callable[..., int]:
    """`command`, whose errors end in one line and an exit code."""
    @functools.wraps(command)
    def ended(*arguments) -> int:
        try:
            with graceful_interrupt():
                return command(*arguments)
        except (UserError, OSError) as error:
            reason = str(error)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last finished epoch",
                  file=sys.stderr)
            return 130
        except Exception as error:
            if is_out_of_threads(error):
                reason = NO_THREADS
            elif is_out_of_memory(error) or "CUDA error" in str(error):
                reason = in_words(error)
            else:
                raise
        print(one_line(f"{sys.argv[0]}: error: {reason}"), file=sys.stderr)
        return 2
    return ended
