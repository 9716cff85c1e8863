"""Looking at a request again while an attempt of it waits, runs or is on its way: whether the other tier should be asked as well, or instead. Pure.

Every look says when the next one is due; `Bearings` says when the first is.
"""

from __future__ import annotations

import math

from edgekit.router._course import Course
from edgekit.router._decide import HOPELESS, LIKELY, SURE, Health, TierEstimate
from edgekit.router._device import LATE, Place, pause_s
from edgekit.router._events import Action
from edgekit.router._open import Open, Sent

__all__ = ["SecondLooks"]

GAIN = 0.1  # a hedge must raise the probability by this much, or it is put off
LOST = 0.1  # a hedge need not wait for its last moment when the device is less likely than this to make it


class SecondLooks(Course):
    """`Course`, and what its requests' timers mean."""

    def _wake(self, open_: Open, now: float, out: list[Action]) -> None:
        """A request's time has come: for a second look, at its deadline, or at its limit."""
        ask = open_.ask
        if now >= ask.limit_s:
            self._end(open_, now, out)
            self._feed(now, out)
            return
        if open_.waits:  # its turn may come still
            self._plan(open_, now)
            return
        if now >= ask.deadline_s:
            self._missed(open_, now, out)
        elif now >= open_.retry_s:
            open_.retry_s = math.inf
            open_.tried = ()
            self._fall_back(open_, now, out, paid=True)
        elif now >= open_.look_s:
            open_.look_s = math.inf
            if open_.place is not None:
                self._look_waiting(open_, now, out)
            elif open_.run:
                self._look_running(open_, now, out)
            elif open_.sent is not None:
                self._look_sent(open_, open_.sent, now, out)
        if ask.request in self._open:
            self._plan(open_, now)

    def _look_waiting(self, open_: Open, now: float, out: list[Action]) -> None:
        """It waits for the device, and the cloud must be asked now or soon."""
        place = open_.place
        if place is None or open_.sent is not None or open_.bound:
            return
        p_edge, again_s = self._device.still_waiting(open_.ask, place, open_.until_s, now)
        index, cloud = self._best(open_, now)
        if cloud is None:
            open_.look_s = again_s if again_s < open_.until_s else math.inf
        elif cloud.p_meet - p_edge > 1.0 - SURE:
            self._device.remove(place)
            open_.place = None
            open_.edge_left = True
            if not self._send(open_, index, cloud, now, out):
                self._to_device(open_, now, False, out)
        elif now < (last_s := open_.until_s - cloud.typical_s):
            open_.look_s = min(again_s, last_s)

    def _look_running(self, open_: Open, now: float, out: list[Action]) -> None:
        """It runs on the device and has not answered: hedge, if that helps."""
        if open_.sent is not None or not self._may_hedge(open_):
            return
        p_edge, again_s = self._device.still_running(open_.run, open_.until_s, now)
        if p_edge >= SURE:
            open_.look_s = again_s if again_s < open_.until_s else math.inf
            return
        index, cloud = self._best(open_, now)
        if cloud is None:
            return
        last_s = open_.until_s - cloud.sure_s
        if p_edge >= LOST and now < last_s:
            open_.look_s = min(again_s, last_s)
        elif (1.0 - p_edge) * cloud.p_meet < GAIN:
            open_.look_s = again_s if again_s < open_.until_s - cloud.typical_s else math.inf
        else:
            self._hedge(open_, index, cloud, now, out)

    def _hedge(self, open_: Open, index: int, cloud: TierEstimate, now: float, out: list[Action]) -> None:
        """Ask the cloud beside the device."""
        if self._throttle.try_take() and self._send(open_, index, cloud, now, out):
            self._hedges.take()
            open_.hedged = True

    def _look_sent(self, open_: Open, sent: Sent, now: float, out: list[Action]) -> None:
        """The cloud has not answered, and the device must be asked now or soon."""
        if not open_.edge_left or open_.bound:
            return
        ask = open_.ask
        elapsed_s = now - sent.started_s
        p_cloud = self._cloud.endpoints[sent.endpoint].estimator.still(
            ask.model, ask.payload_bytes, elapsed_s, elapsed_s + open_.until_s - now, now
        )
        edge = self._device.estimate(ask, open_.until_s - now, now)
        failing = edge.health is Health.FAILING and p_cloud < 0.5  # then it is worth a try
        if not (edge.health is Health.OK or failing) or edge.p_meet < HOPELESS:
            return
        if (1.0 - p_cloud) * edge.p_meet < GAIN:
            again_s = now + pause_s(edge.typical_s, open_.until_s - now)
            open_.look_s = again_s if again_s < open_.until_s - edge.typical_s else math.inf
        else:
            self._second_on_device(open_, sent, p_cloud < 0.5 * edge.p_meet, now, False, out)

    def _second_on_device(self, open_: Open, sent: Sent, instead: bool, now: float, late: bool, out: list[Action]) -> None:
        """Ask the device beside the cloud; or instead of it, when that may not be (hedges are used up, or a sequence would begin twice) and ``instead``."""
        if self._hedges.allows and not open_.ask.sequence:
            self._hedges.take()
            open_.hedged = True
        elif instead:
            self._cancel_sent(open_, sent, now, out)
        else:
            return
        self._to_device(open_, now, late, out)

    def _missed(self, open_: Open, now: float, out: list[Action]) -> None:
        """The deadline has passed."""
        open_.look_s = open_.retry_s = math.inf
        sent, place = open_.sent, open_.place
        if sent is not None and not sent.settled and now >= sent.due_s:
            sent.settled = True
            self._cloud.endpoints[sent.endpoint].failed(now)
            self._plan_check(sent.endpoint)
        if sent is not None and open_.edge_left and open_.ask.on_edge and not open_.bound and not open_.ask.terms.cloud_only:
            self._second_on_device(open_, sent, sent.settled, now, True, out)
        elif place is not None and sent is None and not self._late_in_cloud(open_, place, now, out) and place[0] < LATE:
            self._device.remove(place)
            open_.place = self._device.enqueue(open_.ask, now, late=True)
        elif open_.run and sent is None:
            self._overdue(open_, now, out)
        elif sent is None and place is None:
            self._fall_back(open_, now, out)  # it waited for a retry

    def _overdue(self, open_: Open, now: float, out: list[Action]) -> None:
        """Past its deadline it still runs on the device: ask the cloud for a late answer, when the device hangs."""
        ask = open_.ask
        p_edge, again_s = self._device.still_running(open_.run, ask.limit_s, now)
        if open_.bound:
            return
        if p_edge >= LIKELY:
            open_.look_s = again_s
            return
        indices, clouds = self._offers(ask, open_.tried, ask.limit_s - now, now, open_.edge.service_s)
        fit = [(cloud.p_meet, -index, cloud) for index, cloud in zip(indices, clouds, strict=True) if cloud.health is Health.OK]
        p_cloud, index, cloud = max(fit, key=lambda one: one[:2], default=(0.0, 0, open_.edge))
        if p_cloud <= p_edge:
            return
        if self._may_hedge(open_):
            self._hedge(open_, -index, cloud, now, out)
        elif self._send(open_, -index, cloud, now, out):  # instead of the device, since hedges are used up
            self._cancel_run(open_, out)

    def _late_in_cloud(self, open_: Open, place: Place, now: float, out: list[Action]) -> bool:
        """The device did not come to it in time, and others wait that it may still be in time for: a late answer is the cloud's.

        As seldom as hedges: it buys nobody an answer in time, and a cloud that is slow itself would only get slower.
        """
        ask = open_.ask
        if open_.bound or ask.limit_s - now < ask.sla_s or not self._rescues.allows:
            return False
        indices, clouds = self._offers(ask, open_.tried, ask.limit_s - now, now, open_.edge.service_s)
        for index, cloud in zip(indices, clouds, strict=True):
            if cloud.health is Health.OK and cloud.p_meet >= LIKELY and self._send(open_, index, cloud, now, out):
                self._rescues.take()
                self._device.remove(place)
                open_.place = None
                return True
        return False
