"""What the cloud may cost: requests, bytes and dollars, in any hour and in any day. Pure but for the ledger that `Budgets` is given; time is an argument.

A window slides: *any* 3,600 (86,400) consecutive seconds hold no more than the limit, so no calendar hour does either, whatever the time zone, and there is no
full hour at which a burst gets twice its budget. Time counts in slices (a minute of the hour, a quarter of an hour of the day), and a slice is forgotten only
when all of it is older than the window: what was spent comes back up to a slice late and never early.

A cost is taken before an attempt is sent, and given back only when it never left. Amounts are integers (dollars in units of 1e-12), so no rounding adds up.

Across crashes: the ledger on disk holds what was spent and a *lease*, an amount that may be spent without writing again. Nothing is spent that the ledger does not
cover. After a crash the whole lease counts as spent, so ``kill -9`` costs up to a lease (a twentieth of the smallest limit) and never overruns a limit.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from operator import add
from typing import Protocol

import msgspec

from edgekit.errors import EdgeKitError, UsageError
from edgekit.router._events import Cost

__all__ = [
    "FREE_OF_LIMITS",
    "Amount",
    "Book",
    "BookState",
    "BudgetLimits",
    "Budgets",
    "Ledger",
    "Limit",
    "Saved",
    "amount_of",
    "amount_told",
    "resumed",
]

_log = logging.getLogger(__name__)

Amount = tuple[int, int, int]
"""Requests, bytes, and dollars in units of `DOLLAR_UNIT`."""

DOLLAR_UNIT = 1e-12
LEASE_SHARE = 20  # a lease is this part of the smallest limit
SPANS = {"hour": (3600.0, 60.0), "day": (86400.0, 900.0)}  # window and slice, seconds
_NOTHING: Amount = (0, 0, 0)


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The most that one window may hold; ``None`` is no limit, 0 is nothing at all."""

    requests: int | None = None
    bytes: int | None = None
    dollars: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"budget of {name}", str(value), "a number, 0 or more")

    @property
    def amount(self) -> tuple[float, float, float]:
        """As amounts are counted; infinite where there is no limit."""
        dollars = math.inf if self.dollars is None else round(self.dollars / DOLLAR_UNIT)
        return (math.inf if self.requests is None else self.requests, math.inf if self.bytes is None else self.bytes, dollars)


class BudgetLimits(msgspec.Struct, frozen=True):
    """Both windows' limits."""

    hour: Limit = Limit()
    day: Limit = Limit()

    @property
    def any(self) -> bool:
        """There is a limit at all."""
        return self != FREE_OF_LIMITS


FREE_OF_LIMITS = BudgetLimits()


class BookState(msgspec.Struct, frozen=True):
    """A book as it is kept.

    Attributes:
        now_s: the book's time.
        hour, day: slices: number, and what was spent in it.
    """

    now_s: float
    hour: list[tuple[int, Amount]]
    day: list[tuple[int, Amount]]


class Saved(msgspec.Struct, frozen=True):
    """What the ledger holds.

    Attributes:
        book: what was spent.
        lease: what may have been spent since.
        boot: of which boot `monotonic_s` is; empty where that cannot be told.
        monotonic_s, wall_s: both clocks at the moment of ``book.now_s``.
    """

    book: BookState
    lease: Amount
    boot: str
    monotonic_s: float
    wall_s: float


class Ledger(Protocol):
    """Where a book is kept."""

    def save(self, book: BookState, lease: Amount) -> None:
        """Replace what is kept at once; it survives a crash from the return on. Raises `StorageError`."""
        ...

    def close(self) -> None:
        """Let others have it."""
        ...


class _Window:
    """Spending in one sliding window."""

    __slots__ = ("_due_s", "_slice_s", "_slices", "_span_s", "total")

    def __init__(self, span_s: float, slice_s: float) -> None:
        self._span_s = span_s
        self._slice_s = slice_s
        self._slices: deque[list[int]] = deque()  # [number, requests, bytes, dollars]
        self._due_s = math.inf  # when the oldest leaves
        self.total = [0, 0, 0]

    def forget(self, now: float) -> None:
        """Slices that have wholly left the window."""
        while now >= self._due_s:
            for index, value in enumerate(self._slices.popleft()[1:]):
                self.total[index] -= value
            self._set_due()

    def add(self, amount: Amount, now: float) -> None:
        number = math.floor(now / self._slice_s)
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0, 0])
            self._set_due()
        for index, value in enumerate(amount):
            self._slices[-1][index + 1] += value
            self.total[index] += value

    def take_out(self, amount: Amount, at_s: float) -> None:
        """Undo an `add` of ``at_s``; nothing when its slice is forgotten already."""
        number = math.floor(at_s / self._slice_s)
        for kept in reversed(self._slices):
            if kept[0] == number:
                for index, value in enumerate(amount):
                    undone = min(value, kept[index + 1])
                    kept[index + 1] -= undone
                    self.total[index] -= undone
                return

    def _set_due(self) -> None:
        self._due_s = (self._slices[0][0] + 1) * self._slice_s + self._span_s if self._slices else math.inf

    def state(self) -> list[tuple[int, Amount]]:
        return [(number, (requests, size, dollars)) for number, requests, size, dollars in self._slices]

    def resume(self, slices: list[tuple[int, Amount]]) -> None:
        for number, amount in sorted(slices):
            self.add(amount, (number + 0.5) * self._slice_s)


class Book:
    """What was spent, and whether there is more. Not safe from several threads.

    Its time never goes back: a smaller ``now`` is taken as the largest one seen.

    Attributes:
        limited: there is a limit at all.
        lease: what is worth leasing at once; infinite where there is no limit.
    """

    __slots__ = ("_day", "_hour", "_limits", "_now", "_per_day", "_per_hour", "lease", "limited")

    def __init__(self, limits: BudgetLimits = FREE_OF_LIMITS, state: BookState | None = None) -> None:
        self._hour, self._day = (_Window(*SPANS[name]) for name in ("hour", "day"))
        self.set_limits(limits)
        self._now = -math.inf
        if state is not None:
            self._now = state.now_s
            self._hour.resume(state.hour)
            self._day.resume(state.day)

    @property
    def limits(self) -> BudgetLimits:
        """In force."""
        return self._limits

    def set_limits(self, limits: BudgetLimits) -> None:
        """Other limits from now on. What was spent stays spent: under a lower limit nothing more goes until enough has aged."""
        self._limits = limits
        self.limited = limits.any
        self._per_hour, self._per_day = hour, day = limits.hour.amount, limits.day.amount
        self.lease = _part(hour[0], day[0]), _part(hour[1], day[1]), _part(hour[2], day[2])

    def left(self, now: float) -> tuple[float, float, float]:
        """What could be spent at once; infinite where there is no limit, below 0 after a limit was lowered."""
        self._advance(now)
        (a, b, c), (d, e, f) = self._hour.total, self._day.total
        hour, day = self._per_hour, self._per_day
        return min(hour[0] - a, day[0] - d), min(hour[1] - b, day[1] - e), min(hour[2] - c, day[2] - f)

    def may_spend(self, amount: Amount, now: float) -> bool:
        """True when ``amount`` is left in both windows. Asked for every decision, so nothing is made on the way."""
        self._advance(now)
        requests, size, dollars = amount
        for window, limit in ((self._hour, self._per_hour), (self._day, self._per_day)):
            spent = window.total
            if spent[0] + requests > limit[0] or spent[1] + size > limit[1] or spent[2] + dollars > limit[2]:
                return False
        return True

    def take(self, amount: Amount, now: float) -> None:
        """Spend ``amount``, whether it is left or not."""
        self._advance(now)
        self._hour.add(amount, self._now)
        self._day.add(amount, self._now)

    def give_back(self, amount: Amount, spent_s: float) -> None:
        """``amount``, taken when the time was ``spent_s``, was not needed."""
        self._hour.take_out(amount, spent_s)
        self._day.take_out(amount, spent_s)

    def spent(self, now: float) -> tuple[Amount, Amount]:
        """Of the hour and of the day."""
        self._advance(now)
        (a, b, c), (d, e, f) = self._hour.total, self._day.total
        return (a, b, c), (d, e, f)

    def take_over(self, other: Book, now: float) -> None:
        """Spend what is spent in another book too, as if it were now."""
        self._advance(now)
        hour, day = other._hour.total, other._day.total
        self._hour.add((hour[0], hour[1], hour[2]), self._now)
        self._day.add((day[0], day[1], day[2]), self._now)

    def state(self, now: float) -> BookState:
        """To go on from later."""
        self._advance(now)
        return BookState(self._now, self._hour.state(), self._day.state())

    def _advance(self, now: float) -> None:
        if now > self._now:
            self._now = now
            self._hour.forget(now)
            self._day.forget(now)


def amount_of(cost: Cost) -> Amount:
    """A cost as it is counted."""
    return cost.requests, cost.bytes, round(cost.dollars / DOLLAR_UNIT) if cost.dollars else 0


def amount_told(amount: tuple[float, float, float]) -> dict[str, float | None]:
    """For people and scripts; ``None`` for no limit."""
    units = (("requests", 1), ("bytes", 1), ("dollars", DOLLAR_UNIT))
    return {unit: None if value == math.inf else value * scale for (unit, scale), value in zip(units, amount, strict=True)}


def resumed(saved: Saved | None, limits: BudgetLimits, boot: str, monotonic_s: float, wall_s: float) -> tuple[Book, float]:
    """The book that goes on from what was saved, and what to add to the monotonic clock for its time.

    Within one boot the monotonic clock says how long it has been. Across boots only the wall clock can, and a wall clock that stands before the saved time (a
    device without a battery-backed one) says nothing: then no time has passed, and nothing comes back. A lease counts as spent just now.
    """
    if saved is None:
        return Book(limits), 0.0
    same_boot = boot != "" and boot == saved.boot
    passed_s = monotonic_s - saved.monotonic_s if same_boot else wall_s - saved.wall_s
    now_s = saved.book.now_s + max(0.0, passed_s)
    book = Book(limits, saved.book)
    book.take(saved.lease, now_s)
    return book, now_s - monotonic_s


class Budgets:
    """A `Book` for several threads, covered by a ledger. See the module's text; the interface is `edgekit.router._events.Budgets`.

    `spend` writes to the ledger itself when the lease does not cover a cost, which takes an fsync; `renew`, called from elsewhere when ``short`` is set, keeps that
    rare. When the ledger cannot be written, what the lease does not cover is not spent.

    Args:
        book: from here on only touched by this object.
        ledger: ``None`` to forget everything at the end of the process.
        ahead_s: what to add to ``now`` for the book's time, from `resumed`.

    Attributes:
        short: set when less than half a lease is left.
    """

    def __init__(self, book: Book, ledger: Ledger | None = None, ahead_s: float = 0.0) -> None:
        self._book = book
        self._ledger = ledger
        self._ahead_s = ahead_s
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # taken before `_lock`, held during a write
        # What may still be spent: of the ledger as it is on disk and, during a write, of the one that may be there by now.
        self._leases: list[tuple[float, float, float]] = [_NOTHING]
        self._kept_s = -math.inf
        self.short = threading.Event()
        self.failures = 0

    def may_spend(self, cost: Cost, now: float) -> bool:
        """True when ``cost`` is left in every window."""
        if not self._book.limited:
            return True
        with self._lock:
            return self._book.may_spend(amount_of(cost), now + self._ahead_s)

    def spend(self, cost: Cost, now: float) -> bool:
        """Take ``cost``; False, with nothing taken, when it is not left or the ledger cannot be written."""
        amount, at_s = amount_of(cost), now + self._ahead_s
        done = self._try(amount, at_s)
        while done is None:
            if not self._write(amount, at_s):
                return False
            done = self._try(amount, at_s)
        return done

    def give_back(self, cost: Cost, spent_s: float) -> None:
        """``cost``, taken at ``spent_s``, was for an attempt that never left. A lease does not grow by it."""
        with self._lock:
            if spent_s >= self._kept_s:  # what was spent before there was a ledger lies in another slice since
                self._book.give_back(amount_of(cost), spent_s + self._ahead_s)

    def set_limits(self, limits: BudgetLimits, now: float) -> None:
        """Other limits from now on; see `Book.set_limits`. A limit that is new counts what was spent before as far as the ledger knew of it."""
        with self._lock:
            changed = limits != self._book.limits
            self._book.set_limits(limits)
        if changed:
            self._write(_NOTHING, now + self._ahead_s)

    @property
    def kept(self) -> bool:
        """There is a ledger."""
        return self._ledger is not None

    def keep(self, book: Book, ledger: Ledger, ahead_s: float, now: float) -> None:
        """Have a ledger from now on: go on from its book, in which all that was spent here so far is spent too."""
        with self._writing, self._lock:
            book.take_over(self._book, now + ahead_s)
            book.set_limits(self._book.limits)
            self._book, self._ledger, self._ahead_s, self._kept_s = book, ledger, ahead_s, now

    def renew(self, now: float) -> None:
        """Lease anew when less than half is left; the time that an fsync takes is spent here and not on a request's way."""
        with self._lock:
            at_s = now + self._ahead_s
            short = _is_short(self._leases[-1], _lease(self._book, _NOTHING, at_s))
        if short:
            self._write(_NOTHING, at_s)

    def spent(self, now: float) -> tuple[Amount, Amount]:
        """Of the hour and of the day."""
        with self._lock:
            return self._book.spent(now + self._ahead_s)

    @property
    def limits(self) -> BudgetLimits:
        """In force."""
        return self._book.limits

    def close(self, now: float) -> None:
        """Write what was really spent, so that no lease is lost, and let the ledger go."""
        if self._ledger is not None:
            if self._book.limited:
                self._write(_NOTHING, now + self._ahead_s, last=True)
            self._ledger.close()
            self._ledger = None

    def _try(self, amount: Amount, at_s: float) -> bool | None:
        """Whether ``amount`` was taken; ``None`` when it is left, but not covered by the ledger."""
        with self._lock:
            if not self._book.may_spend(amount, at_s):
                return False
            if self._ledger is not None and self._book.limited:
                if not all(_covers(lease, amount) for lease in self._leases):
                    return None
                self._leases = [(a - amount[0], b - amount[1], c - amount[2]) for a, b, c in self._leases]
                if _is_short(self._leases[-1], self._book.lease):
                    self.short.set()
            self._book.take(amount, at_s)
            return True

    def _write(self, need: Amount, at_s: float, *, last: bool = False) -> bool:
        """Put the book and a new lease on disk; True when that is done, or was done by another thread meanwhile and covers ``need``."""
        if self._ledger is None:
            return True
        with self._writing:
            with self._lock:
                if need != _NOTHING and all(_covers(lease, need) for lease in self._leases):
                    return True
                lease = _NOTHING if last else _lease(self._book, need, at_s)
                state = self._book.state(at_s)
                self._leases.append(lease)
            a, b, c = (0 if value == math.inf else int(value) for value in lease)
            try:
                self._ledger.save(state, (a, b, c))
            except EdgeKitError as exc:
                with self._lock:  # either may be on disk now, so what both cover is covered
                    self._leases = [_both(*self._leases)]
                self.failures += 1
                if self.failures == 1:
                    _log.error("the budgets' ledger cannot be written, so no more is spent than it covers: %s", exc)
                return False
            with self._lock:
                self._leases = self._leases[-1:]
            self.failures = 0
        return True


def _covers(left: tuple[float, float, float], amount: Amount) -> bool:
    return amount[0] <= left[0] and amount[1] <= left[1] and amount[2] <= left[2]


def _both(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float, float]:
    return min(one[0], other[0]), min(one[1], other[1]), min(one[2], other[2])


def _lease(book: Book, need: Amount, at_s: float) -> tuple[float, float, float]:
    """``need`` and the book's lease, as far as that is left."""
    requests, size, dollars = (max(0, min(*pair)) for pair in zip(book.left(at_s), map(add, need, book.lease), strict=True))
    return requests, size, dollars


def _part(hour: float, day: float) -> float:
    smaller = min(hour, day)
    return smaller if smaller == math.inf else int(smaller) // LEASE_SHARE


def _is_short(left: tuple[float, float, float], lease: tuple[float, float, float]) -> bool:
    return 2 * left[0] < lease[0] or 2 * left[1] < lease[1] or 2 * left[2] < lease[2]
