"""Risks as they are assessed: `topics` reads results and tasks, `hub` tells clients, `pictures` has what they show.

`feed` opens all of it while somebody listens; `gateway.routes.risk` has the routes.
"""
