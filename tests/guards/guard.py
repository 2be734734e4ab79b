"""What a guard is, and the list of them (`guards.toml`)."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

LIST = Path(__file__).with_name("guards.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """How a text of the product is taken out.

    Attributes:
        file: from the root of the repository.
        old: what stands in it, exactly once.
        new: what stands there instead.
    """

    file: str
    old: str
    new: str

    def of(self, source: str) -> str:
        """The source without it.

        Raises:
            ValueError: it does not stand there exactly once.
        """
        if (times := source.count(self.old)) != 1:
            raise ValueError(f"stands {times} times in {self.file}: {self.old!r}")
        return source.replace(self.old, self.new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Something in the product that keeps results from being lost, repeated or wrong.

    Attributes:
        name: short, for the command line.
        what: it keeps from happening, or how.
        removals: together they take it out.
        tests: node ids of pytest, each of which must fail without it.
    """

    name: str
    what: str
    removals: tuple[Removal, ...]
    tests: tuple[str, ...]

    @classmethod
    def load_all(cls) -> dict[str, Self]:
        """All of the list, by name."""
        return {
            listed["name"]: cls(
                name=listed["name"],
                what=listed["what"],
                removals=tuple(Removal(**removal) for removal in listed["removals"]),
                tests=tuple(listed["tests"]),
            )
            for listed in tomllib.loads(LIST.read_text())["guard"]
        }

    def taken_out(self, root: Path) -> Mapping[str, str]:
        """The changed files: what each holds without the guard."""
        sources = {removal.file: (root / removal.file).read_text() for removal in self.removals}
        for removal in self.removals:
            sources[removal.file] = removal.of(sources[removal.file])
        return sources
