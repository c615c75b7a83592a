"""What counts as storage that fails for a while."""

from __future__ import annotations

import pytest

from sharding import storage
from sharding.errors import UserError


def test_an_s3_endpoint_that_nobody_listens_at_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import EndpointConnectionError

    unreachable = EndpointConnectionError(endpoint_url="http://127.0.0.1:9")
    assert not isinstance(unreachable, OSError)
    assert storage.is_trouble(unreachable)
    with storage.tolerate_trouble():
        raise unreachable


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (OSError("503"), True),
        (TimeoutError(), True),
        (UserError("no", "remedy"), False),
        (TypeError("a mistake"), False),
        (KeyError("a"), False),
    ],
)
def test_what_is_trouble(error: Exception, trouble: bool) -> None:
    assert storage.is_trouble(error) is trouble


def test_a_mistake_is_not_tolerated() -> None:
    with pytest.raises(TypeError), storage.tolerate_trouble():
        raise TypeError
