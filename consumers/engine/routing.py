"""Where the records of a cycle go."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from consumers.engine.cycle import Draft, Outgoing
from consumers.engine.transaction import Send
from ingest.contract.dead_letter import DeadLetter
from ingest.runtime.partitioner import partition_of, partitions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """A topic that exists, and how many partitions it has."""

    topic: str
    partitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Both topics that a partition's cycles write to, besides the changelog.

    Attributes:
        partition: of the input.
        partitions: how many the input has. A result has its report's key, so that with as many partitions it has its
            number, too.
    """

    results: Outlet
    dead_letters: Outlet
    partition: int
    partitions: int

    def sends(self, draft: Draft) -> list[Send]:
        """The records of a draft by topic and partition, those of one partition in their order."""
        return [*self._results(draft.results), *self._dead_letters(draft.dead_letters)]

    def places(self) -> list[tuple[str, int]]:
        """Every topic and partition that a record may go to."""
        alike = self.results.partitions == self.partitions
        results = [self.partition] if alike else range(self.results.partitions)
        return [
            *((self.results.topic, place) for place in results),
            *((self.dead_letters.topic, place) for place in range(self.dead_letters.partitions)),
        ]

    def _results(self, results: Sequence[Outgoing]) -> list[Send]:
        topic = self.results.topic
        if not results:
            return []
        if self.results.partitions == self.partitions:
            return [Send(topic, self.partition, results)]
        by_partition: dict[int, list[Outgoing]] = defaultdict(list)
        places = partitions_of([result.key or b"" for result in results], self.results.partitions)
        for place, result in zip(places.tolist(), results, strict=True):
            by_partition[place].append(result)
        return [Send(topic, place, those) for place, those in by_partition.items()]

    def _dead_letters(self, letters: Sequence[DeadLetter]) -> list[Send]:
        by_partition: dict[int, list[Outgoing]] = defaultdict(list)
        count = self.dead_letters.partitions
        for letter in letters:
            place = self.partition % count if letter.key is None else partition_of(letter.key, count)
            by_partition[place].append(Outgoing(letter.key, letter.value, letter.headers, letter.timestamp_ms))
        return [Send(self.dead_letters.topic, place, those) for place, those in by_partition.items()]
