"""A master that dies in the middle of jobs: real Sentinels make its replica the master, and no job is lost."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jobs.schema import EditJob, JobState
from jobs.settings import BrokerSettings, load_settings
from producer import BrokerUnavailable, Client
from tests.integration.conftest import Service
from tests.servers.sentinel import running_sentinels
from tests.servers.worker import running_worker
from tests.waiting import PATIENCE_SECONDS, eventually

REPLICATED = 1
WAIT_MS = 5000


def test_jobs_go_on_when_the_master_is_killed_and_none_that_was_replicated_is_lost(
    service: Service, tmp_path: Path
) -> None:
    names = [f"job-{number}" for number in range(12)]
    with running_sentinels(tmp_path) as redis:
        client = Client(
            settings=load_settings(BrokerSettings, broker_url=redis.url, output_uri=service.settings.output_uri)
        )
        jobs = [EditJob(id=name, image=service.picture(), prompt="make it snow", batch="b") for name in names]
        environment = {**service.environment, "DG_BROKER_URL": redis.url}
        with running_worker("w1", tmp_path, environment) as worker:
            assert [item.verdict for item in client.submit_many(jobs)] == ["created"] * len(names)
            eventually(lambda: client.status("b")[JobState.SUCCEEDED])
            with redis.master.client() as master:
                assert master.wait(REPLICATED, WAIT_MS) == REPLICATED

            redis.master.kill()

            for name in names:
                eventually(partial(_has_ended, client, name), what=f"the end of {name}")
                assert client.get(name).state is JobState.SUCCEEDED
            assert eventually(lambda: client.submit(jobs[0])) == names[0]
            client.submit(EditJob(id="after", image=service.picture(), prompt="make it snow"))
            assert client.wait("after", PATIENCE_SECONDS).state is JobState.SUCCEEDED
            worker.process.terminate()
            assert worker.exit_code() == 0
        with redis.replica.client() as replica:
            assert replica.info("replication")["role"] == "master"


def _has_ended(client: Client, name: str) -> bool:
    """Whether the job has ended; no while Redis is away."""
    try:
        return client.get(name).state.is_terminal
    except BrokerUnavailable:
        return False
