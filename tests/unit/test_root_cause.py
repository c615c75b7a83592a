"""What the user is told of an error that Ray has wrapped: the project's own words, or the innermost reason."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from cluster.runs.launch import describe, root_cause
from sharding.errors import UserError


def wrapped(error: Exception) -> BaseException:
    """As ``ray.get`` raises it: of both classes at once."""
    return RayTaskError("finish", "Traceback (most recent call last) ...", error).as_instanceof_cause()


def test_a_user_error_of_a_task_is_one_line() -> None:
    error = wrapped(UserError("no checkpoint could be evaluated", "resume"))
    assert isinstance(error, UserError)
    assert "(pid=" in str(error)
    assert describe(root_cause(error)) == "no checkpoint could be evaluated — resume"


def test_a_user_error_hides_what_it_was_made_from() -> None:
    error = UserError("the run's storage does not answer", "resume")
    error.__cause__ = OSError("503")
    assert root_cause(error) is error


def test_any_other_error_of_a_task() -> None:
    assert describe(root_cause(wrapped(ValueError("five")))) == "ValueError: five"
