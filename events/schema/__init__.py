"""The events of the ledger and their envelope: the public contract between all releases.

An event that was ever written stays readable. A field may be added with a default; any other change is a new version
of the type, with a step in ``events.upcast`` and a golden file. Readers ignore unknown fields, and get an unknown type
or version as ``Unknown``.

JSON of others (network configurations, plugin results) is recorded as text, byte for byte, because DEL and CHECK must
pass on what ADD was given (CNI specification 1.1, section 2, "Deleting an attachment").

To add an event type:

1. Write its class in ``requests``, ``effects`` or ``observations``. It extends one of ``kinds``: ``Intent``,
   ``Command``, ``Decision``, ``Effect``, ``Outcome``, ``Observation`` or ``Fence``. Set ``topic`` if it depends on
   other events of the node. Export, encoding, table of types, pending requests, forgetting, metrics and the timeline
   follow from this.
2. Add its golden file, with every field set, as ``tests/unit/events/golden/<Type>.v1.json``: a test names the missing
   file.
3. If the event changes a sandbox, add a step to ``events.fold.steps``; if it changes the node's other state, add one
   to ``events.fold.state``. A type without a step changes no state except the pending requests.
4. If it is an ``Intent``, add a case to ``Dispatcher.dispatch`` in ``nodeworker/sandboxes/dispatcher.py``: a test names
   the missing type. A ``Command`` also needs a handler in ``nodeworker/__main__.py``, and the phase and the outcome of
   a failure in ``nodeworker/sandboxes/commands.py``.
5. If its name is not enough for people, add words to ``reconciler/history/words.py``.
6. Add its row to ``docs/reference/events.md``: a test names the missing type.
"""
# ruff: noqa: F403  # each module's names are exported by the module itself, so that no list repeats them

from __future__ import annotations

from events.schema.effects import *
from events.schema.envelope import *
from events.schema.ids import *
from events.schema.kinds import *
from events.schema.observations import *
from events.schema.parts import *
from events.schema.requests import *
