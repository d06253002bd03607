from __future__ import annotations

import pytest

from lakeclip.errors import LakeclipError
from lakeclip.lake.folder import account as account_module
from lakeclip.lake.folder.account import Account


def test_an_account_adds_up_if_each_item_is_used_or_left_out() -> None:
    account = Account()
    account.add_read("files", 5)
    account.add_used("files", 3)
    account.add_left_out("files", "too large: 900 MB")
    with pytest.raises(LakeclipError, match="the account of photos does not add up") as caught:
        account.check("photos")
    assert caught.value.found == "5 files read, but 3 used and 1 left out"
    account.add_left_out("files", "too large: 700 MB")
    account.check("photos")
    assert account.to_dict() == {"files": {"read": 5, "used": 3, "left_out": {"too large": 2}}}


@pytest.mark.parametrize("mistake", ["used twice", "left out without being read"])
def test_items_that_are_counted_too_often_are_found(mistake: str) -> None:
    account = Account()
    account.add_read("rows")
    account.add_used("rows")
    account.add_used("rows") if mistake == "used twice" else account.add_left_out("columns", "masks")
    with pytest.raises(LakeclipError, match="does not add up"):
        account.check("x")


def test_units_do_not_balance_one_another_and_accounts_can_be_added() -> None:
    total, other = Account(), Account()
    total.add_read("rows", 2)
    total.add_used("rows", 2)
    other.add_read("rows")
    other.add_left_out("rows", "no caption")
    total.add(other)
    total.check("x")
    assert (total.read["rows"], total.used["rows"], total.num_left_out("rows")) == (3, 2, 1)


def test_the_number_of_reasons_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of JSON may be different in every row."""
    monkeypatch.setattr(account_module, "_MAX_REASONS", 3)
    account = Account()
    account.add_read("keys", 9)
    for number in range(9):
        account.add_left_out("keys", f"key {number}")
    account.check("x")
    assert account.left_out["keys", "other reasons"] == 6
