"""Whether the parts that the server stands on are there. `gateway.services` opens `report.HealthChecks`."""
