"""Services that belong together: started, watched, started again, and all ended together, however their parent ends."""

from vectorize_pipelines.supervision.services import Service
from vectorize_pipelines.supervision.supervisor import ServiceError, Supervisor

__all__ = ["Service", "ServiceError", "Supervisor"]
