"""Addresses of hubs and devices, as people paste them."""

from __future__ import annotations

import pytest

from tapml.errors import UsageError
from tapml.remote.address import HubAddress, RemoteName

FINGERPRINT = "ab" * 32


def test_an_address_comes_back_as_it_was() -> None:
    for url in (
        "http://127.0.0.1:8765/?token=abc-_1",
        f"https://192.168.1.5:8765/?token=abc.{FINGERPRINT}",
        "http://[::1]:1234/?token=x",
        "https://hub.example:443/?pair=ABCD-EFGH",
    ):
        assert HubAddress.parse(url).url == url


def test_what_an_address_says() -> None:
    address = HubAddress.parse(f"https://192.168.1.5/?token=abc.{FINGERPRINT.upper()}")
    assert (address.host, address.port, address.token, address.fingerprint) == ("192.168.1.5", 443, "abc", FINGERPRINT)
    assert address.websocket == "wss://192.168.1.5:443/wire"
    assert address.redacted == "https://192.168.1.5:443"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("127.0.0.1:8765", "not the address"),
        ("ftp://host/?token=x", "not the address"),
        ("http:///?token=x", "not the address"),
        ("http://host:99999/?token=x", "not the address"),
        ("http://a..b:1/?token=x", "not the address"),
        ("http://host:8765/", "no token"),
        ("http://host:8765/?token=", "no token"),
        ("https://host/?token=abc.123", "is incomplete"),
        ("", "not the address"),
    ],
)
def test_what_is_no_address(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        HubAddress.parse(text)


def test_no_message_shows_a_token() -> None:
    for text in ("ftp://host/?token=secret", "https://host/?token=secret.123", "x,any@http://host/?token=secret", "@http://h/?token=secret"):
        with pytest.raises(UsageError) as caught:
            RemoteName.parse(text)
        assert "secret" not in str(caught.value)


def test_names() -> None:
    name = RemoteName.parse("phone, board@http://h:1/?token=t")
    assert name.names == ("phone", "board")
    assert str(name) == "phone,board@http://h:1/?token=t"
    assert name.one("board").redacted == "board@http://h:1"
    assert RemoteName.parse("any@http://h:1/?token=t").names == ("any",)


@pytest.mark.parametrize("text", ["phone", "@http://h/?token=t", "a,@http://h/?token=t", "any,a@http://h/?token=t", "a@h"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UsageError):
        RemoteName.parse(text)
