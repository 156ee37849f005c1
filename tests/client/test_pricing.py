"""What a request costs, and which prices and limits are accepted."""

from __future__ import annotations

import decimal
import pickle
import warnings
from decimal import Decimal
from types import MappingProxyType
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kie4o
from kie4o import (
    AsyncKieClient,
    ConfigurationError,
    CreditLimitError,
    ImageRequest,
    InvalidRequestError,
    Spent,
)
from kie4o.arguments import credit_limit_of
from kie4o.emulator import Emulator
from kie4o.image_request import Variants
from kie4o.pricing import VARIANTS, Subtotal, times, total

LISTED = {1: 6, 2: 11.5, 4: Decimal("20.25")}


@pytest.mark.parametrize("variants", VARIANTS)
def test_the_published_rate_is_six_credits_an_image(variants: Any) -> None:
    """It is the default, and the result is a `Decimal`, as the balance is."""
    price = ImageRequest("x", n_variants=variants).price()
    assert price == 6 * variants
    assert type(price) is Decimal


def test_the_variants_with_a_price_are_those_of_a_request() -> None:
    """Two modules list them."""
    assert get_args(Variants) == VARIANTS


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (5, [5, 10, 20]),
        (0, [0, 0, 0]),
        (0.1, [Decimal("0.1"), Decimal("0.2"), Decimal("0.4")]),
        (Decimal("6.5"), [6.5, 13, 26]),
        (LISTED, [6, 11.5, 20.25]),
        (MappingProxyType(LISTED), [6, 11.5, 20.25]),
        ({4: 0, 2: 0, 1: 0, 8: 40}, [0, 0, 0]),
        (None, [6, 12, 24]),
    ],
    ids=repr,
)
def test_prices_are_a_rate_or_a_mapping(prices: Any, expected: list[Any]) -> None:
    """A number is that of one image. A float is what was written: a tenth is a tenth."""
    found = [ImageRequest("x", n_variants=variants).price(prices) for variants in get_args(Variants)]
    assert found == expected
    AsyncKieClient("k-123", prices=prices)


NO_AMOUNTS: dict[str, Any] = {
    "negative": -1,
    "below 0": -0.01,
    "negative decimal": Decimal("-0.01"),
    "nan": float("nan"),
    "decimal nan": Decimal("NaN"),
    "signalling nan": Decimal("sNaN"),
    "infinite": float("inf"),
    "infinite decimal": Decimal("Infinity"),
    "bool": True,
    "text": "6",
    "bytes": b"6",
    "list": [6, 12, 24],
    "complex": 6j,
    "class": object,
    "too large": 10**10,
    "of 4,000 digits": 10**4000,
}
NO_PRICES: dict[str, Any] = NO_AMOUNTS | {
    "no variants": {},
    "one variant": {1: 6},
    "two variants": {1: 6, 2: 12},
    "text as key": {"1": 6, "2": 12, "4": 24},
    "bool as key": {True: 6, 2: 12, 4: 24},
    "none as key": {1: 6, 2: 12, 4: 24, 0: 0},
    "key of 4,000 digits": {1: 6, 2: 12, 4: 24, 10**4000: 1},
    "none as price": {1: 6, 2: None, 4: 24},
    **{f"{name} in a mapping": {1: 6, 2: price, 4: 24} for name, price in NO_AMOUNTS.items()},
}


@pytest.mark.parametrize("prices", NO_PRICES.values(), ids=NO_PRICES)
def test_what_is_no_price_is_refused(prices: Any) -> None:
    """By the constructor as a setting, by `price` as an argument; the error names it and what is expected."""
    with pytest.raises(ConfigurationError, match=r"invalid prices(\[\d\])?=.*: expected"):
        AsyncKieClient("k-123", prices=prices)
    with pytest.raises(InvalidRequestError, match=r"invalid prices(\[\d\])?=.*: expected"):
        ImageRequest("x").price(prices)


def test_a_missing_number_of_variants_is_named() -> None:
    """The error says which prices are to be added."""
    with pytest.raises(ConfigurationError, match="the price of 2 and 4 variants is missing"):
        AsyncKieClient("k-123", prices={1: 6})


def test_a_mapping_is_copied() -> None:
    """Changing it later changes no price."""
    prices = {1: 6, 2: 12, 4: 24}
    client = AsyncKieClient("k-123", prices=prices)
    prices[1] = 99
    assert client._options.prices.price(1) == 6


def test_variants_that_kie4o_does_not_know() -> None:
    """`extra` may ask for 8: a rate has a price for them, and a mapping only if they are in it."""
    request = ImageRequest("x", extra={"nVariants": 8})
    assert request.price() == 48
    assert request.price({1: 6, 2: 12, 4: 24, 8: 40}) == 40
    with pytest.raises(InvalidRequestError, match="no price is known for 8 variants"):
        request.price(LISTED)


@pytest.mark.parametrize("variants", ["4", 0, -1, True, None, 2.0, [4]], ids=repr)
def test_variants_that_are_no_number_have_no_price(variants: Any) -> None:
    """Kie may still know what they are, so the request itself is not refused."""
    with pytest.raises(InvalidRequestError, match="no price is known"):
        ImageRequest("x", extra={"nVariants": variants}).price()


@pytest.mark.parametrize("limit", [*NO_AMOUNTS.values(), {}], ids=[*NO_AMOUNTS, "mapping"])
async def test_what_is_no_limit_is_refused(limit: Any, kie: Emulator, api_key: str) -> None:
    """Before a request is taken."""
    taken: list[str] = []

    def prompts() -> Any:
        taken.append("x")
        yield "x"

    async with AsyncKieClient(api_key, base_url=kie.url) as client:
        with pytest.raises(InvalidRequestError, match=r"invalid max_credits=.*: expected .* None"):
            await anext(client.generate_many(prompts(), max_credits=limit))
    assert (taken, kie.tasks) == ([], {})


@pytest.mark.parametrize("limit", [0, 600, 0.5, Decimal("0.1"), -0.0], ids=repr)
def test_a_limit_is_a_number_of_credits(limit: Any) -> None:
    assert credit_limit_of(limit) == Decimal(str(limit))
    assert not str(credit_limit_of(limit)).startswith("-")


# -- sums ------------------------------------------------------------------------------------------

AMOUNTS = st.decimals(0, 10**9, allow_nan=False, places=9)


@given(st.lists(AMOUNTS), st.integers(0, 10**6))
def test_sums_are_exact(amounts: list[Decimal], count: int) -> None:
    """In any decimal context of the caller: there one with two digits, which rounds 606 to 6.1E+2."""
    with decimal.localcontext(decimal.Context(prec=200)):
        expected = [sum(amounts, Decimal(0)), *(amount * count for amount in amounts)]
    with decimal.localcontext(decimal.Context(prec=2)):
        assert Decimal(600) + Decimal(6) == 610  # the control
        assert [total(amounts), *(times(amount, count) for amount in amounts)] == expected


def test_spent_adds_up() -> None:
    """`credits` and `tasks` are those of all states; it can be pickled, and is equal to itself."""
    spent = Spent(
        submitted=Subtotal(credits=Decimal(6), tasks=1),
        succeeded=Subtotal(credits=Decimal("0.3"), tasks=3),
        unknown=Subtotal(credits=Decimal(24), tasks=2),
        unpriced=1,
    )
    assert (spent.credits, spent.tasks) == (Decimal("30.3"), 6)
    assert (Spent().credits, Spent().tasks, Spent().unpriced) == (0, 0, 0)
    assert pickle.loads(pickle.dumps(spent)) == spent


def test_a_limit_that_is_reached_can_be_pickled() -> None:
    """With its amounts, as every error can."""
    error = CreditLimitError("reached")
    error.spent, error.limit, error.price = Decimal(594), Decimal(600), Decimal(24)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.spent, copy.limit, copy.price) == ("reached", 594, 600, 24)
    assert isinstance(copy, kie4o.KieError)


def test_asking_for_a_price_warns_of_nothing() -> None:
    """The author of the request was warned when it was made."""
    with pytest.warns(UserWarning, match="fallback_model"):
        request = ImageRequest("x", fallback_model="GPT_IMAGE_1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert request.price() == 6
