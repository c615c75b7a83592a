"""The event log: what survives a crash and what a history is."""

import uuid
from pathlib import Path

from sharding import storage
from trainer.run.events import EventLog, read_events, step_history


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), 1, "train")
    log.write("step", step=0, loss=1.0)
    log.write("step", step=1, loss=0.5)
    log.close()
    file = next((tmp_path / "events").iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    assert [event["step"] for event in read_events(str(tmp_path))] == [0]


def test_a_step_done_again_counts_as_the_latest_attempt_did_it(tmp_path: Path) -> None:
    for attempt, steps in ((1, range(5)), (2, range(3, 7))):
        log = EventLog(str(tmp_path), attempt, "train")
        for step in steps:
            log.write("step", step=step, loss=float(attempt))
        log.close()
    history = step_history(read_events(str(tmp_path)))
    assert [event["step"] for event in history] == list(range(7))
    assert [event["loss"] for event in history] == [1, 1, 1, 2, 2, 2, 2]


def test_on_an_object_store_each_flush_is_a_segment() -> None:
    url = f"memory://events-{uuid.uuid4().hex}/run"
    log = EventLog(url, 1, "train")
    log.write("a")
    assert read_events(url) == []
    log.flush()
    log.write("b")
    log.close()
    assert [event["event"] for event in read_events(url)] == ["a", "b"]
    assert len(storage.list_names(storage.join(url, "events"))) == 2


def test_floats_read_back_exactly(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-45, 2 / 3]
    log = EventLog(str(tmp_path), 1, "train")
    for value in values:
        log.write("x", value=value)
    log.close()
    assert [event["value"] for event in read_events(str(tmp_path))] == values
