"""Which wheels of a folder make up ONNX Runtime for a device, with all that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.version import Version

from hdap_tui.provision.fitting import Interpreter
from hdap_tui.provision.wheels import Needs, Wheel, needs
from hdap_tui.text import clean

RUNTIME = "onnxruntime"
_ROUNDS = 200


class LackingError(Exception):
    """A device cannot be provisioned; the text says what it lacks and what would help."""


@dataclass
class _Search:
    """Chooses the newest that fits, and begins again where a later wheel asks for an older one."""

    wheels: Sequence[Wheel]
    interpreter: Interpreter
    limits: dict[str, SpecifierSet] = field(default_factory=dict)
    asked_by: dict[str, str] = field(default_factory=dict)
    read: dict[Wheel, Needs] = field(default_factory=dict)

    def run(self) -> list[Wheel]:
        for _ in range(_ROUNDS):
            chosen = self._attempt()
            if chosen is not None:
                return [chosen[name] for name in sorted(chosen)]
        raise LackingError("its wheels need each other in a way that has no end")

    def _attempt(self) -> dict[str, Wheel] | None:
        """Return the closure; None where a limit turned up that an earlier choice breaks."""
        chosen: dict[str, Wheel] = {}
        waiting = [RUNTIME]
        while waiting:
            name = waiting.pop()
            wheel = chosen[name] = self._best(name)
            for requirement in self._needs(wheel).requirements:
                marker = requirement.marker
                if marker and not marker.evaluate(dict(self.interpreter.markers)):
                    continue
                other = requirement.name.lower().replace("_", "-").replace(".", "-")
                before = self.limits.get(other, SpecifierSet())
                self.limits[other] = before & requirement.specifier
                self.asked_by.setdefault(other, wheel.name)
                if other not in chosen:
                    waiting.append(other)
                elif not self._allowed(chosen[other]):
                    return None
            waiting = [one for one in dict.fromkeys(waiting) if one not in chosen]
        return chosen

    def _needs(self, wheel: Wheel) -> Needs:
        if wheel not in self.read:
            self.read[wheel] = needs(wheel)
        return self.read[wheel]

    def _allowed(self, wheel: Wheel) -> bool:
        limits = self.limits.get(wheel.name, SpecifierSet())
        return limits.contains(wheel.version, prereleases=True)

    def _best(self, name: str) -> Wheel:
        same = [wheel for wheel in self.wheels if wheel.name == name]
        fitting = [wheel for wheel in same if rank(wheel, self.interpreter) is not None]
        allowed = [wheel for wheel in fitting if self._allowed(wheel)]
        python = ".".join(map(str, self.interpreter.version))
        usable = [wheel for wheel in allowed if self._needs(wheel).python.contains(python, True)]
        if not usable:
            raise LackingError(self._why_none(name, same, fitting))
        return max(usable, key=self._order)

    def _order(self, wheel: Wheel) -> tuple[object, ...]:
        """The newest version, then the highest build, then the best tag."""
        return wheel.version, wheel.build, -(rank(wheel, self.interpreter) or 0)

    def _why_none(self, name: str, same: list[Wheel], fitting: list[Wheel]) -> str:
        needed = self.interpreter.label
        asked = self.asked_by.get(name)
        because = f", which {asked} needs," if asked else ""
        limit = str(self.limits.get(name, ""))
        if not same:
            return f"the folder has no wheel of {name}{limit}{because.rstrip(',')}"
        if not fitting:
            found = ", ".join(sorted({clean(wheel.path.name, 90) for wheel in same})[:3])
            return (
                f"no wheel of {name}{because} fits: the device needs {needed}, the folder has"
                f" {found}"
            )
        found = ", ".join(sorted({str(wheel.version) for wheel in fitting})[:5])
        by = f" by {asked}" if asked else ""
        return f"the folder has {name} {found} for {needed}, but {limit or 'another'} is needed{by}"


def closure(
    wheels: Sequence[Wheel], interpreter: Interpreter, version: Version | None
) -> list[Wheel]:
    """Return ONNX Runtime's wheel and all that it needs on that interpreter, by name.

    The newest of each that fits; ONNX Runtime itself in that version, where one is given.

    Raises:
        LackingError: a wheel is missing; the text says which, and what was found in its place.
        WheelError: a wheel cannot be read.
    """
    search = _Search(wheels, interpreter)
    if version is not None:
        search.limits[RUNTIME] = SpecifierSet(f"=={version}")
    return search.run()


def rank(wheel: Wheel, interpreter: Interpreter) -> int | None:
    """Return how well a wheel fits, 0 being best; None where it does not."""
    known: dict[Tag, int] = interpreter.tags
    return min((known[tag] for tag in wheel.tags if tag in known), default=None)
