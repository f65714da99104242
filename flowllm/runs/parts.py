"""Parts of a run, computed in one folder by processes that know nothing of each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flowllm.errors import FlowLLMError
from flowllm.system.options import OptionError, check_count
from flowllm.system.pools import check_executor

_PART = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


class Unfinished(FlowLLMError):
    """The end of a part while other parts of the run are missing: there is no outcome yet."""


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`: every `count`-th shard of a run.

    Attributes:
        number: from 1 to `count`.
        count: number of parts.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read a part as it is written.

        Args:
            text: `NUMBER/COUNT`.

        Returns:
            The part.

        Raises:
            OptionError: if the text has another form, or the number is not from 1 to the count.
        """
        if found := _PART.fullmatch(text) if isinstance(text, str) else None:
            part = cls(int(found[1]), int(found[2]))
            if 1 <= part.number <= part.count:
                return part
        raise OptionError("part", f"is {text!r}; give I/N with I from 1 to N, such as 1/4")

    def has(self, index: int) -> bool:
        """Return whether a shard belongs to the part.

        Args:
            index: of the shard.
        """
        return index % self.count == self.number - 1


def check_placement(workers: int, executor: str, part: str | None) -> None:
    """Check where a run is to be computed; nothing heavy is imported.

    Args:
        workers: number of workers.
        executor: name of the executor, see `flowllm.system.pools.check_executor`.
        part: `I/N`, or None for the whole run.

    Raises:
        UserError: if one of them is bad.
    """
    check_count("workers", workers, 1)
    check_executor(executor)
    if part is not None:
        Part.parse(part)
