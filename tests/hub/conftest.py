"""What tests of the Hub share."""

import pytest
from data_fixtures import images
from hub_server import HubServer
from hub_worker import Workers
from running import WITH_REPORT, clean_process, train

__all__ = ['clean_process', 'images', 'run', 'server', 'worker', 'workers']


@pytest.fixture(scope='session')
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


@pytest.fixture(scope='session')
def workers(server):
    """What starts workers."""
    with Workers(server) as workers:
        yield workers


@pytest.fixture(scope='session')
def worker(workers, tmp_path_factory):
    """A process of alice's."""
    with workers.start(tmp_path_factory.mktemp('home'), token='hf_good') as worker:
        yield worker


@pytest.fixture(scope='session')
def run(images, tmp_path_factory):
    """A run folder with HNC."""
    output = ['--output', tmp_path_factory.mktemp('runs'), '--experiment', 'run']
    return train('--data-dir', images, *WITH_REPORT, '--cam-images', 8, '--hnc', 'mse', '--hnc-topk', '2', *output)
