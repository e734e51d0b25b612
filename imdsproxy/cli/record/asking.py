"""Sending the questions, one after another, within the budget of IMDS.

Behind an imdsproxy its budget applies, and its 429 says when to ask again. IMDS itself is asked at most four times a
second, so that others on the VM get an answer too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPException

from imdsproxy.cli.record.conversation import Conversation, Question, RecordError
from imdsproxy.cli.running.client import Place, connection_to
from imdsproxy.emulator.recorded.recording import Recording, Said

PAUSE = 0.25
_TIMEOUT = 130.0
_PATIENCE = 70.0
_FIRST_WAIT = 1.0
_TRANSIENT = frozenset({410, 429, 500, 502, 503, 504})


class Asker:
    """Asks one place."""

    def __init__(self, place: Place, sleep: Callable[[float], None] = time.sleep) -> None:
        self.place = place
        self.asked = 0
        self._sleep = sleep
        self._is_proxy = False

    def hold(self, conversation: Conversation) -> Recording:
        """Hold a conversation to its end.

        Raises:
            RecordError: IMDS does not answer, or the conversation failed.
        """
        question = next(conversation)
        try:
            while True:
                question = conversation.send(self._patiently(question))
        except StopIteration as end:
            recording: Recording = end.value
            return recording

    def _patiently(self, question: Question) -> Said:
        waited, wait = 0.0, _FIRST_WAIT
        while True:
            said, retry_after = self._ask(question)
            if said.status not in _TRANSIENT:
                return said
            pause = max(wait, retry_after)
            if waited + pause > _PATIENCE:
                raise RecordError(
                    f"IMDS answers {said.status} to {question.target} for {waited:.0f} seconds; record when it is quiet"
                )
            self._sleep(pause)
            waited, wait = waited + pause, wait * 2

    def _ask(self, question: Question) -> tuple[Said, float]:
        """Return the answer, and the seconds of its Retry-After, 0 without one."""
        if self.asked and not self._is_proxy:
            self._sleep(PAUSE)
        self.asked += 1
        connection = connection_to(self.place, _TIMEOUT)
        try:
            connection.request("GET", question.target, headers={"Metadata": "true"} if question.header else {})
            response = connection.getresponse()
            body = response.read().decode("utf-8")
        except (OSError, HTTPException, UnicodeDecodeError) as error:
            raise RecordError(
                f"{self.place.name} does not answer {question.target} as IMDS does: {error}; name another --url"
            ) from None
        finally:
            connection.close()
        self._is_proxy = "imdsproxy" in response.getheader("Cache-Status", "")
        after = response.getheader("Retry-After", "")
        return Said(response.status, response.getheader("Content-Type", ""), body), float(
            after
        ) if after.isdecimal() else 0
