"""Find the files about each attachment of a sandbox, the default network first.

Pure. Multus' scratch file gives the order and the names. If it is torn or missing, libcni's entries list the
attachments, and the runtime's request names the default network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from events.schema import IfName
from nodeworker.host.adopt import evidence
from nodeworker.host.adopt.read import SandboxFiles, Unreadable
from nodeworker.host.adopt.records import Delegate, Entry, RecordError, Scratch

_DIGITS = re.compile(r"(\d+)")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The files about one attachment; at least one of the two is not None."""

    ifname: IfName
    delegate: Delegate | None
    entry: Entry | None


def sources(files: SandboxFiles, links: frozenset[str] | None, notes: list[str]) -> list[Source]:
    """Return the sources of all attachments of *files*; add a sentence to *notes* for each missing file.

    *links* are the interfaces in the sandbox's namespace; None: it is gone. Raises RecordError.
    """
    match files.scratch:
        case Scratch() as scratch:
            found = _by_scratch(files, scratch, links, notes)
        case Unreadable() as torn:
            found = _by_request(files, str(torn), notes)
        case None:
            found = _by_request(files, "Multus' scratch file is missing", notes)
    found += _further(files, links, found, notes)
    names = [source.ifname for source in found]
    if len(set(names)) != len(names):
        raise RecordError(f"two interfaces of the sandbox have the same name: {', '.join(names)}")
    return found


def _by_request(files: SandboxFiles, lost: str, notes: list[str]) -> list[Source]:
    """Return the source of the default network, without a scratch file."""
    if files.unreadable:
        raise RecordError(f"{lost}, and {files.unreadable[0]}")
    if files.request is None:
        raise RecordError(f"{lost}, and the runtime's own request, which names the default network, is missing")
    default = [entry for entry in files.entries if entry.ifname == files.request.ifname]
    if len(default) != 1:
        raise RecordError(f"{lost}, and libcni has {len(default)} entries for {files.request.ifname}, not one")
    notes.append(f"{lost}: the networks are named as in their CNI configurations")
    return [Source(ifname=default[0].ifname, delegate=None, entry=default[0])]


def _by_scratch(files: SandboxFiles, scratch: Scratch, links: frozenset[str] | None, notes: list[str]) -> list[Source]:
    found: list[Source] = []
    for index, delegate in enumerate(scratch.delegates):
        network = evidence.configuration(None, delegate, default=False).name
        ifname = IfName(delegate.ifname or (f"net{index}" if index else _default_name(files, scratch, network)))
        entry = next((each for each in files.entries if each.ifname == ifname), None)
        if entry is None:
            _note_lost(files, ifname, links, notes)
        elif entry.network != network:
            raise RecordError(f"{scratch.path} has {ifname} on {network}, and {entry.path} has it on {entry.network}")
        found.append(Source(ifname=ifname, delegate=delegate, entry=entry))
    for unreadable in files.unreadable:
        if not any(_is_of(unreadable, source.ifname) for source in found):
            raise RecordError(f"{unreadable}, and no other file describes that attachment")
    return found


def _default_name(files: SandboxFiles, scratch: Scratch, network: str) -> str:
    """Return the name of the default network's interface: the runtime's, unless the pod asked for another one."""
    if files.request is not None:
        return files.request.ifname
    others = {each.ifname or f"net{index}" for index, each in enumerate(scratch.delegates)}
    names = [entry.ifname for entry in files.entries if entry.network == network and entry.ifname not in others]
    if len(names) != 1:
        raise RecordError("the runtime's own request is missing, and no other file names its interface")
    return names[0]


def _note_lost(files: SandboxFiles, ifname: IfName, links: frozenset[str] | None, notes: list[str]) -> None:
    """Add to *notes* that *ifname* has no entry. Raises RecordError if it may not be attached.

    The runtime writes its request after everything is attached.
    """
    torn = next((str(each) for each in files.unreadable if _is_of(each, ifname)), "")
    why = torn or f"libcni has no entry for {ifname}"
    if links is not None and (files.request is None or ifname not in links):
        raise RecordError(f"{why}, so its ADD may be in progress or have failed; check again later")
    notes.append(f"{why}: the result of its ADD is lost; DEL does not need it, CHECK does")


def _further(
    files: SandboxFiles, links: frozenset[str] | None, found: Sequence[Source], notes: list[str]
) -> list[Source]:
    """Return the sources of the attachments beyond those *found*, ordered by name.

    If there is a scratch file, they were added to the running pod. An entry without an interface was removed from it:
    libcni never deletes entries of CNI versions before 0.4.0.
    """
    known = {source.ifname for source in found}
    further: list[Source] = []
    for entry in sorted(files.entries, key=lambda entry: _natural(entry.ifname)):
        if entry.ifname in known and any(entry is source.entry for source in found):
            continue
        if isinstance(files.scratch, Scratch) and links is not None and entry.ifname not in links:
            notes.append(f"{entry.path} names an interface that does not exist and was not requested: left out")
            continue
        further.append(Source(ifname=entry.ifname, delegate=None, entry=entry))
    return further


def _is_of(torn: Unreadable, ifname: IfName) -> bool:
    return torn.path.endswith(f"-{ifname}")


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders net2 before net10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name) if part]
