"""Who may talk to a Galaxy that has no login: programs of the same person, and pages that it served itself.

Every program on this machine can reach a port on loopback, and so can every web page that a browser here shows. So the
doorkeeper refuses connections of other people's processes, names under which another site could have led a browser here
(DNS rebinding), and requests that a page of another origin makes.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

OWN_NAMES = ("127.0.0.1", "localhost")
ALLOWED_USERS = (0, os.getuid())


class Doorkeeper:
    """An ASGI application before another one."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Hand on what may pass and answer the rest with 403 and the reason."""
        reason = refusal(scope) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            text = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": text})
            await send(
                {"type": "http.response.body", "body": f"KBrain's Galaxy refuses this: {reason}\n".encode()}
            )


def refusal(scope):
    """Why a request may not pass; None when it may."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get("host", "")
    if urlsplit(f"//{host}").hostname not in OWN_NAMES:
        return f"it is known as {' or '.join(OWN_NAMES)}, not as '{host}'"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return f"a page of another origin asked for it ({origin})"
    navigation = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") == "GET"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigation:
        return "a page of another site asked for it"
    if scope.get("client") and user_of(*scope["client"]) not in ALLOWED_USERS:
        return "the request came from another person's program on this computer"
    return None


def user_of(address, port):
    """The user whose process holds the other end of a connection over loopback; None when there is no such connection."""
    wanted = "".join(f"{int(part):02X}" for part in reversed(address.split("."))) + f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):  # some programs write IPv4 addresses as IPv6
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(wanted):
                return int(fields[7])
    return None
