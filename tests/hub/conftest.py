"""What tests of the Hub share."""

import pytest
from data_fixtures import images
from hub_server import HubServer, client_environment
from hub_worker import Worker
from running import WITH_REPORT, clean_process, subprocess_environment, train

__all__ = ['clean_process', 'images', 'run', 'server', 'worker']


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp('hub')) as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults_are_left(server):
    yield
    server.heal()


@pytest.fixture
def somebody(worker):
    """The worker, which may take another token."""
    yield worker
    worker.become('hf_good')


@pytest.fixture(scope='module')
def worker(server, tmp_path_factory):
    """A process of alice's."""
    start = subprocess_environment()
    environment = client_environment(server, tmp_path_factory.mktemp('home'), token='hf_good', start=start)
    with Worker(environment) as worker:
        yield worker


@pytest.fixture(scope='module')
def run(images, tmp_path_factory):
    """A run folder with HNC."""
    output = ['--output', tmp_path_factory.mktemp('runs'), '--experiment', 'run']
    return train('--data-dir', images, *WITH_REPORT, '--cam-images', 8, '--hnc', 'mse', '--hnc-topk', '2', *output)
