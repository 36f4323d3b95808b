"""`producer dead-letters`: messages that workers put aside because they are none of ours."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from jobs.dead_letters import DeadLetters
from producer.client import Client
from producer.commands import options
from producer.terminal import plural, put, put_json, say

SHOWN_CHARACTERS = 100


def dead_letters(
    show: Annotated[
        bool, options.option("--show", help="Whole messages instead of their beginnings. [default: off]")
    ] = False,
    drop: Annotated[bool, options.option("--drop", help="Forget all of them. [default: off]")] = False,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """List messages that no worker could take, newest first, with the reason.

    \b
    Example: producer dead-letters --show

    What was meant as an edit has to be sent again in the form of docs/contract.md.
    """
    client = Client(settings=options.settings_with(broker_url))
    letters = DeadLetters(client.ledger.redis, client.ledger.key("dead-letters"))
    if drop:
        dropped = letters.drop()
        say(f"{plural(dropped, 'message')} dropped")
        if as_json:
            put_json(dropped=dropped)
        return
    for letter in letters:
        if as_json:
            put_json(**asdict(letter))
            continue
        at = datetime.fromtimestamp(letter.at, UTC)
        message = letter.message if show else letter.message[:SHOWN_CHARACTERS]
        put(f"{at:%Y-%m-%d %H:%M:%S} UTC {letter.worker}: {letter.reason}; {letter.size_bytes} bytes: {message!a}")
