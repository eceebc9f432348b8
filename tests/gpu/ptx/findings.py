"""What the executor reports."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One thing a kernel did wrong. `kind` is what tests compare; `str()` says where and who."""

    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class FatalFindingError(Exception):
    """The launch cannot go on, as a GPU could not."""


@dataclass
class Findings:
    """Collects findings, each place in the code once for each kind."""

    limit: int = 100
    list: list[Finding] = field(default_factory=list)
    _seen: set[object] = field(default_factory=set)

    def add(self, kind: str, place: object, message: str) -> None:
        key = (kind, place)
        if key not in self._seen and len(self.list) < self.limit:
            self._seen.add(key)
            self.list.append(Finding(kind, message))

    def fatal(self, kind: str, place: object, message: str) -> None:
        self.add(kind, place, message)
        raise FatalFindingError(message)
