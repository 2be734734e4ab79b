"""An assembler that stops itself in the middle of a transaction, as a machine that freezes would.

`python -m tests.crash.assembler_child STEP NUMBER [ARGUMENT...]` is `python -m consumers assemble [ARGUMENT...]`. Only,
at this step of its so-many-th transaction it sends itself SIGSTOP. It goes on when somebody sends SIGCONT.
"""

import os
import signal
import sys

from consumers.__main__ import main
from consumers.engine import kafka
from tests.hooks import HookedProducer, Step, at_time


async def freeze(_: HookedProducer) -> None:
    """Stop here until somebody lets the process go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    step, number, *arguments = sys.argv[1:]
    HookedProducer.hooks[Step(step)] = at_time(int(number), freeze)
    setattr(kafka, "AIOKafkaProducer", HookedProducer)  # noqa: B010 - a name that the module does not export
    sys.argv[1:] = ["assemble", *arguments]
    sys.exit(main())
