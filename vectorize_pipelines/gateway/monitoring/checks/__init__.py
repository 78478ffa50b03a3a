"""Health checks of the parts that the server stands on. `gateway.services` opens `report.HealthChecks`."""
