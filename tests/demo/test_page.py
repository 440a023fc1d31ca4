"""The page of timm-hnc demo as the command serves it: in a real browser, and under requests that should get nothing."""

import json
import signal
import socket
import time
import urllib.error
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import timm
import torch
from browser import open_page
from image_data import CLASSES
from PIL import Image
from running import SMALL, start_script, train
from timm.data import create_transform, resolve_data_config
from torchvision.datasets import ImageFolder

from timm_hnc.demo.page import own_names

WIDE, NARROW = 1280, 400


@pytest.fixture(scope='module')
def runs(images, tmp_path_factory):
    """Two runs: without and with HNC."""
    argv = ['--data-dir', images, *SMALL, '--output', tmp_path_factory.mktemp('runs')]
    flat = ['--hnc', 'mse', '--hnc-weight', '0.1', '--hnc-topk', '2']
    return [train(*argv, '--experiment', 'plain'), train(*argv, '--experiment', 'flat', *flat)]


def gallery_files(address: str) -> list[str]:
    components = json.loads(urlopen(f'{address}config').read())['components']
    [gallery] = [each for each in components if each['type'] == 'gallery']
    return [each['image']['path'] for each in gallery['props']['value']]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture(scope='module')
def page(runs, browser):
    """Address of the page that compares the two runs."""
    port = free_port()
    address = f'http://127.0.0.1:{port}/'
    command = Path(__file__).with_name('watched_command.py'), 'demo'
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('http_proxy', 'http://127.0.0.1:9')  # nobody is there
        environment.setenv('no_proxy', 'example.com')
        process = start_script(*command, *runs, '--port', port, '--images', 6, '--device', 'cpu')
    until(lambda: process.poll() is not None or status_of(address) == 200)
    yield address
    [uploads] = {Path(path).parents[1] for path in gallery_files(address)}
    assert uploads.is_dir()
    browser.get('about:blank')  # the server waits for whoever still listens
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert out.startswith(f'{address} (Ctrl-C ends it)\n'), err
    assert process.returncode == 0
    assert not uploads.exists(), 'uploads go with the page'
    assert 'asks for' in err, 'it looks whether it is there itself'
    addresses = {line.partition('asks for ')[2] for line in err.splitlines() if line.startswith('asks for ')}
    assert {address for address in addresses if '127.0.0.1' not in address} == set()


def until(look, seconds=20):
    """What a function of the page gives, once that is something."""
    end = time.time() + seconds
    while time.time() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f'not within {seconds} s')


class Reader:
    """What a visitor does."""

    def __init__(self, browser):
        self.browser = browser

    def every(self, selector):
        return self.browser.find_elements('css selector', selector)

    def text_of(self, selector):
        return self.browser.execute_script(
            'return [...document.querySelectorAll(arguments[0])].map(each => each.innerText.trim())', selector
        )

    def names(self, model):
        """The classes of a model as they are listed, and their percentages."""
        listed = self.browser.execute_script(
            'return [...document.querySelectorAll(".class-names")].map(list => '
            '[...list.querySelectorAll("button dl")].map(each => each.innerText.split(/\\s+/).filter(x => x)))'
        )
        return dict(listed[model]) if listed else {}

    def heads(self):
        return self.text_of('.class-maps figure b')

    def upload(self, path):
        for button in self.every('button[aria-label="Remove Image"]'):
            self.browser.execute_script('arguments[0].click()', button)  # a message may lie over it
            until(lambda: not self.heads())
        until(lambda: self.every('input[type=file]'))[0].send_keys(str(path))

    def message(self):
        return ' '.join(self.text_of('.toast-body'))


@pytest.fixture
def reader(page, browser):
    open_page(browser, page, WIDE)
    reader = Reader(browser)
    until(lambda: len(reader.every('button.thumbnail-item')) == 6)
    return reader


def logits_of(run: Path, photo: Image.Image) -> torch.Tensor:
    model = timm.create_model(f'local-dir:{run / "model_best"}', pretrained=True).eval()
    with torch.no_grad():
        return model(create_transform(**resolve_data_config({}, model=model))(photo)[None])[0]


def test_a_validation_image_is_compared(reader, runs, images):
    folder = ImageFolder(images / 'validation')
    photo, label = folder[2 * len(folder) // 6]
    reader.every('button.thumbnail-item')[2].click()
    until(lambda: len(reader.every('.class-maps.of-five')) == 2)
    for model, run in enumerate(runs):
        probability = logits_of(run, photo).softmax(0)
        found = {name: float(value.rstrip('%')) for name, value in reader.names(model).items()}
        assert found == pytest.approx({CLASSES[i]: 100 * probability[i].item() for i in range(3)}, abs=0.51)
    assert reader.heads()[:3] == ['expected', 'absent 1', 'absent 2']
    assert reader.text_of('.class-maps figcaption span')[0] == CLASSES[label]


def test_a_class_that_is_clicked_has_its_map_in_both(reader):
    reader.every('button.thumbnail-item')[0].click()
    until(reader.heads)
    chosen = list(reader.names(0))[2]
    until(lambda: reader.every('button.confidence-set'))[2].click()
    labels = 'label[data-testid="block-label"]'
    until(lambda: sum(text.startswith(f'{chosen}, ') for text in reader.text_of(labels)) == 2)


def test_an_uploaded_photograph_is_explained_against_the_expected_class(reader, runs, images, tmp_path):
    photo = ImageFolder(images / 'validation')[0][0]
    photo.save(tmp_path / 'photo.png')
    reader.upload(tmp_path / 'photo.png')
    until(lambda: reader.heads()[:2] == ['predicted', 'top 2'])
    logits = [logits_of(run, photo) for run in runs]
    wrong = CLASSES[int(logits[0].argmin())]
    menu = reader.every('input[aria-label="expected class"]')[0]
    menu.click()
    menu.send_keys(wrong, '\n')
    until(lambda: 'difference' in reader.heads())
    [told, *_] = [text for text in reader.text_of('p') if text.startswith('Why ')]
    assert told.startswith(f'Why {CLASSES[int(logits[0].argmax())]} and not {wrong}? Their logits differ by ')
    assert float(told.split('differ by ')[1].split(':')[0]) == pytest.approx(
        (logits[0].max() - logits[0].min()).item(), rel=0.06
    )


@pytest.mark.parametrize('uploaded', [False, True])
def test_a_photograph_that_is_removed_leaves_nothing(reader, images, tmp_path, uploaded):
    if uploaded:
        ImageFolder(images / 'validation')[0][0].save(tmp_path / 'photo.png')
        reader.upload(tmp_path / 'photo.png')
    else:
        reader.every('button.thumbnail-item')[2].click()
    until(reader.heads)
    [button] = reader.every('button[aria-label="Remove Image"]')
    button.click()
    until(lambda: not reader.heads())
    time.sleep(0.5)  # for what should not come
    assert (reader.heads(), reader.names(0)) == ([], {})
    assert not any(', 0.' in text for text in reader.text_of('label[data-testid="block-label"]'))


def test_sliders_change_the_large_map_alone(reader):
    reader.every('button.thumbnail-item')[0].click()
    until(reader.heads)
    large = lambda: reader.browser.execute_script(  # noqa: E731
        'return [...document.querySelectorAll("[data-testid=detailed-image], .image-frame img")].map(each => each.src)'
    )
    small = reader.browser.execute_script('return document.querySelector(".class-maps img").src')
    until(lambda: len(large()) > 1)
    before = large()
    opacity = reader.every('input[type=range]')[1]
    opacity.send_keys('\ue012' * 3)  # left
    until(lambda: large()[-1] != before[-1])
    assert reader.browser.execute_script('return document.querySelector(".class-maps img").src') == small


def broken(folder: Path, kind: str) -> Path:
    path = folder / f'{kind}.png'
    if kind == 'text':
        path.write_text('no image')
    elif kind == 'cut':
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
        noise.save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == 'bomb':  # 400 megapixels in 400 kB
        Image.new('1', (20000, 20000)).save(path)
    else:
        path.write_bytes(b'\x89PNG' + bytes(31 * 2**20))
    return path


def test_uploads_that_are_no_photographs_get_a_message_and_the_page_lives(reader, images, tmp_path):
    reader.every('button.thumbnail-item')[0].click()
    until(reader.heads)
    for kind, message in (
        ('text', "photo 'text.png' cannot be read: it is no image, or damaged"),
        ('cut', "photo 'cut.png' cannot be read: it is no image, or damaged"),
        ('bomb', "photo 'bomb.png' has too many pixels"),
        ('large', 'maximum allowed size'),
    ):
        reader.upload(broken(tmp_path, kind))
        until(lambda text=message: text in reader.message())
        assert str(tmp_path) not in reader.message()
        until(lambda: not reader.heads())  # nothing stays of the photograph before
    for _ in range(3):  # a click may be lost while the page draws the last message
        reader.browser.execute_script('arguments[0].click()', reader.every('button.thumbnail-item')[1])
        with suppress(TimeoutError):
            assert until(reader.heads, 8)[0] == 'expected'
            break
    else:
        pytest.fail('the page shows no photograph any more')


@pytest.mark.parametrize(('width', 'theme'), [(WIDE, 'light'), (NARROW, 'dark')])
def test_nothing_leaves_the_machine_and_nothing_overflows(page, browser, width, theme):
    browser.get('about:blank')  # the page of another test tells of the streams that it leaves
    browser.get_log('performance')
    browser.get_log('browser')
    open_page(browser, f'{page}?__theme={theme}', width)
    reader = Reader(browser)
    until(lambda: reader.every('button.thumbnail-item'))[0].click()
    until(reader.heads)
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    messages = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    sent = [message['params'] for message in messages if message['method'] == 'Network.requestWillBeSent']
    asked = {each['request']['url'] for each in sent}
    assert {address for address in asked if not address.startswith((page, 'data:', 'blob:'))} == set()
    assert [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE'] == []


def status_of(request) -> int:
    try:
        with urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_web_page_under_another_name_gets_no_answer(page):
    """Its owner may let that name lead to this machine (DNS rebinding)."""
    port = page.rstrip('/').rpartition(':')[2]
    for host, status in (('evil.example', 400), ('localhost', 200), ('127.0.0.1', 200)):
        assert status_of(Request(f'{page}config', headers={'Host': f'{host}:{port}'})) == status


def test_names_that_a_page_answers_to(monkeypatch):
    monkeypatch.delenv('GRADIO_SERVER_NAME', raising=False)
    for host in (None, 'localhost', '127.0.0.1', '127.0.0.2'):
        assert {'localhost', '127.0.0.1', host or 'localhost'} == set(own_names(host))
    assert own_names('0.0.0.0') == own_names('host.example') == []
    monkeypatch.setenv('GRADIO_SERVER_NAME', '0.0.0.0')
    assert own_names(None) == []
    monkeypatch.setenv('SPACE_ID', 'user/name')
    assert own_names('127.0.0.1') == [], 'a Space, which others reach by its own name'


def test_no_file_of_the_machine_can_be_read(page, runs, images):
    secrets = [runs[0] / 'args.yaml', runs[0] / 'model_best' / 'model.safetensors', images, Path('/etc/passwd')]
    secrets += [Path(__file__), Path('pyproject.toml').absolute()]
    for path in secrets:
        for start in ('gradio_api/file=', 'file=', 'gradio_api/file=/', 'gradio_api/file=..'):
            assert status_of(f'{page}{start}{path}') in (403, 404, 405), path
    config = json.loads(urlopen(f'{page}config').read())
    kind = {'Content-Type': 'application/json'}
    wanted = [{'path': str(path)} for path in (Path('/etc/passwd'), images / 'validation' / 'blue' / 'blue-00.png')]
    wanted += [{'path': 'http://example.com/a.png'}, {'path': 'x', 'url': 'http://example.com/a.png'}]
    wanted += [each | {'meta': {'_type': 'gradio.FileData'}} for each in wanted]
    sent = 0
    for dependency in config['dependencies']:
        for number, value in enumerate(wanted if dependency['inputs'] else wanted[:1]):  # else all bodies are alike
            body = {'data': [value for _ in dependency['inputs']], 'fn_index': dependency['id']}
            status_of(Request(f'{page}gradio_api/run/predict', json.dumps(body).encode(), kind))
            body['session_hash'] = f'attack-{dependency["id"]}-{number}'
            if status_of(Request(f'{page}gradio_api/queue/join', json.dumps(body).encode(), kind)) == 200:
                sent += 1
                answers = answers_of(page, body['session_hash'])
                looked = dependency['inputs'] == [photograph_of(config)]
                assert not looked or '"success":false' in answers.replace(' ', ''), (value, answers)
                assert 'root:' not in answers
    assert sent > 20
    assert status_of(page) == 200


def photograph_of(config) -> int:
    [number] = [each['id'] for each in config['components'] if each['props'].get('label') == 'photograph']
    return number


def answers_of(page, session) -> str:
    answers = ''
    with urlopen(f'{page}gradio_api/queue/data?session_hash={session}', timeout=20) as stream:
        while 'process_completed' not in answers:
            answers += stream.readline().decode()
    return answers
