"""Which tokens the metrics list, and what they say of them."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.ops.token_figures import MOST_TOKENS, TokenFigures, tokens_in_use
from imdsproxy.ops.token_names import TokenName
from tests.scripted import DOWN, Imds, Stage, status, token
from tests.targets import TOKEN
from tests.virtual import run

LIFE = 7200


def listed(stage: Stage) -> list[TokenFigures]:
    return tokens_in_use(stage.proxy.store.slots(), stage.parts.history, stage.now)


def audience_of(number: int) -> str:
    return f"{TOKEN}{number}"


def test_token_is_listed_while_it_is_fresh_and_no_longer() -> None:
    async def steps() -> None:
        stage = Stage(Imds(lambda _sent: token(LIFE)))
        await stage.get(TOKEN)
        (only,) = listed(stage)
        assert only.name.identity == "default"
        assert only.name.audience.startswith("https://")
        assert only.remaining == pytest.approx(LIFE)
        assert (only.failing, only.failures) == (False, 0)
        await asyncio.sleep(LIFE / 2 + 1)  # it is stale then, and no client has requested it since
        assert not listed(stage)
        await stage.proxy.fetches.close()

    run(steps())


def test_failed_renewal_is_shown_until_another_succeeds() -> None:
    async def steps() -> None:
        answer = token(LIFE)
        stage = Stage(Imds(lambda _sent: answer), retry_max=0.5)
        await stage.get(TOKEN)
        answer = status(403)
        await asyncio.sleep(LIFE / 2 + 1)
        await stage.get(TOKEN)
        await asyncio.sleep(5)
        (only,) = listed(stage)
        assert (only.failing, only.failures) == (True, 1)
        assert 0 < only.remaining < LIFE / 2
        answer = token(LIFE)
        await asyncio.sleep(30)
        await stage.get(TOKEN)
        await asyncio.sleep(5)
        (only,) = listed(stage)
        assert (only.failing, only.failures) == (False, 1)
        await stage.proxy.fetches.close()

    run(steps())


def test_token_that_expired_while_its_renewal_failed_has_no_life_left() -> None:
    async def steps() -> None:
        answer = token(LIFE)
        stage = Stage(Imds(lambda _sent: answer), retry_max=0.5)
        await stage.get(TOKEN)
        answer = DOWN  # type: ignore[assignment]
        await asyncio.sleep(LIFE + 1)
        await stage.get(TOKEN)
        (only,) = listed(stage)
        assert (only.remaining, only.failing) == (0.0, True)
        await asyncio.sleep(86_400)
        assert not listed(stage), "no client can rely on it any more"
        await stage.proxy.fetches.close()

    run(steps())


def test_token_that_imds_never_issued_is_not_listed() -> None:
    """Otherwise clients would choose the labels of metrics."""

    async def steps() -> None:
        stage = Stage(Imds(lambda _sent: status(400)))
        await stage.get(TOKEN)
        assert stage.parts.history.token_failures()
        assert not listed(stage)
        await stage.proxy.fetches.close()

    run(steps())


def test_number_of_tokens_is_bounded() -> None:
    async def steps() -> None:
        stage = Stage(Imds(lambda _sent: token(LIFE)), budget_requests=1000)
        for number in range(MOST_TOKENS + 30):
            await stage.get(audience_of(number))
        found = listed(stage)
        assert len({each.name for each in found}) == len(found) == MOST_TOKENS
        assert len(stage.parts.history.renewal_failures) <= 64
        assert TokenName("", "default") not in stage.parts.history.renewal_failures
        await stage.proxy.fetches.close()

    run(steps())
