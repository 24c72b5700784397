"""The kinds of events: a class of event data extends one of them, and its kind says what follows from the event.

The fold, forgetting and the timeline ask for the kind, so a new type needs no entry in a list of theirs.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from events.schema.parts import (
    IfName,
    NetworkName,
    RequestId,
)


class Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an event says. These fields mean the same in every type that has them:

    ``failure``: the event reports a failure. ``node``: the node that an event of the reconciler is about. ``ifname``,
    except in an effect: the interface name that the runtime gave with the ADD; with the container ID it addresses the
    sandbox. ``effects``: effects without a separate event.
    """

    topic: ClassVar[str] = ""
    """Events of the node that depend on one another have the same topic. Retention forgets them together."""
    opens: ClassVar[bool] = False
    """Whether a later event closes what this one opens. Retention deletes it before the event that closes it."""


class Intent(Data, frozen=True, kw_only=True):
    """Asks for something. It is pending until an outcome names it as its ``cause``."""

    opens: ClassVar[bool] = True

    request: RequestId
    """ID of the request: a request that is repeated has the same."""


class Command(Intent, frozen=True, kw_only=True):
    """An intent that the reconciler, or a person, sends down to a node through ``events.ledger.commands``."""

    by: str = "reconciler"
    command: int = 0
    """Sequence of the command in its stream; the next worker continues after it."""


class Decision(Data, frozen=True, kw_only=True):
    """What will be done for an intent."""


class Effect(Data, frozen=True, kw_only=True):
    """What was done to one attachment."""

    network: NetworkName
    ifname: IfName
    """Name of the attachment's interface in the sandbox."""


class Outcome(Data, frozen=True, kw_only=True):
    """Closes the intent that is its ``cause``."""

    request: RequestId
    """The intent's; empty if the outcome closes none."""


class Observation(Data, frozen=True, kw_only=True):
    """What was seen, or happened. It opens no request and closes none."""


class Fence(Data, frozen=True, kw_only=True):
    """A writer took over from the one before it. The newest fence says who may write, and is never forgotten."""
