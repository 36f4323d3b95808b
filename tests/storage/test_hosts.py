"""Silent hosts: for how long they are remembered, and how many."""

from __future__ import annotations

from storage import hosts as hosts_module
from storage.hosts import FORGOTTEN_SECONDS, MOST_SILENT, Hosts

NAME = "silent.example:443"


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def is_held_back(hosts: Hosts) -> bool:
    """Whether a second call is refused while the first one is under way."""
    with hosts.turn(NAME) as first, hosts.turn(NAME) as second:
        assert first
        return not second


def test_a_silence_lasts_from_the_first_call_to_the_next_answer() -> None:
    clock = Clock()
    hosts = Hosts(clock)
    hosts.note(NAME, is_silent=True)
    clock.seconds += 60
    hosts.note(NAME, is_silent=True)
    clock.seconds += 40

    assert hosts.silent_seconds(NAME) == 100
    assert is_held_back(hosts)
    hosts.note(NAME, is_silent=False)
    assert hosts.silent_seconds(NAME) == 0
    assert not is_held_back(hosts)


def test_a_host_that_was_not_called_for_long_is_forgotten() -> None:
    clock = Clock()
    hosts = Hosts(clock)
    hosts.note(NAME, is_silent=True)
    clock.seconds += FORGOTTEN_SECONDS - 1
    assert is_held_back(hosts)
    clock.seconds += 2

    assert not is_held_back(hosts)
    assert hosts.silent_count == 0


def test_names_that_senders_choose_fill_no_memory() -> None:
    hosts = Hosts(Clock())
    for number in range(MOST_SILENT + 500):
        hosts.note(f"host{number}.example:443", is_silent=True)
        hosts.note(NAME, is_silent=True)  # called again and again, so it is not the one to be forgotten

    assert hosts.silent_count == hosts_module.MOST_SILENT
    assert is_held_back(hosts)
