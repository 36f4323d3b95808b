"""The service of the integration tests, for the hostile ones."""

from tests.integration.conftest import service, start_worker

__all__ = ["service", "start_worker"]
