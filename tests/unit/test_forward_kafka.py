"""Which answers of the brokers mean what."""

import pytest
from aiokafka import errors

from ingest.forward.kafka import _verdict
from ingest.forward.link import RefusedError


@pytest.mark.parametrize(
    "error",
    [
        errors.TopicAuthorizationFailedError("sms.status-reports"),
        errors.ClusterAuthorizationFailedError(),
        errors.UnknownTopicOrPartitionError(),
        errors.LeaderNotAvailableError(),
        errors.OutOfOrderSequenceNumber(),
        errors.ProducerFenced(),
        errors.KafkaConnectionError(),
        TimeoutError(),
        AssertionError("Unrecognized partition"),
    ],
)
def test_what_says_nothing_about_a_record_is_sent_again(error: BaseException) -> None:
    """Missing permission, missing topics, leaders and producers that broke blame no record."""
    assert not isinstance(_verdict(error, 3), RefusedError)


@pytest.mark.parametrize(
    "error",
    [errors.MessageSizeTooLargeError(), errors.RecordListTooLargeError(), errors.PolicyViolationError()],
)
def test_what_blames_a_record_is_a_refusal(error: BaseException) -> None:
    """Size and policy are refused again however often they are sent."""
    verdict = _verdict(error, 3)

    assert isinstance(verdict, RefusedError)
    assert (verdict.taken, verdict.doubtful, verdict.timestamp) == (3, False, False)


def test_an_error_the_client_does_not_know_is_doubtful() -> None:
    """INVALID_RECORD (87) looks like a fault of the broker to aiokafka 0.14."""
    verdict = _verdict(errors.for_code(87)(), 3)

    assert isinstance(verdict, RefusedError)
    assert verdict.doubtful


def test_an_impossible_timestamp_is_told_apart() -> None:
    """It can be helped by stamping anew."""
    verdict = _verdict(errors.InvalidTimestampError(), 3)

    assert isinstance(verdict, RefusedError)
    assert verdict.timestamp


def test_the_reason_never_quotes_what_was_sent() -> None:
    """Texts of errors can hold keys or values; only their kind is kept."""
    assert str(_verdict(errors.KafkaError("to +8613800000000"), 1)) == "KafkaError"
