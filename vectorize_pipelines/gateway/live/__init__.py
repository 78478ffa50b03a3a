"""Changes of state as they happen: a source (`sources`) hands each to the hub (`hub`), the hub to all who listen.

`gateway.services` opens `events.LiveEvents`, and `gateway.routes.live` has the routes.
"""
