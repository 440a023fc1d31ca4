"""A page to try models on: a photograph, its classes, and the map of each (a Gradio app)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from timm_hnc.demo.answers import Answers
from timm_hnc.demo.samples import Sample
from timm_hnc.errors import DataError, UsageError, first_lines
from timm_hnc.plots.map_image import MAP_WEIGHT
from timm_hnc.plots.photo_cams import Subject
from timm_hnc.plots.photos import load_photo

MAX_UPLOAD = '30mb'
_HEIGHT = 280  # of the photograph, in pixels
_KEPT = 3600  # seconds that a photograph is kept
_REFUSED = 'Only photographs that were uploaded here are looked at.'
_CSS = Path(__file__).parent / 'templates' / 'page.css'
# fonts of the reader's machine: the theme's own lie elsewhere
_FONTS: dict[str, Any] = {'font': ('system-ui', 'sans-serif'), 'font_mono': ('ui-monospace', 'monospace')}
_QUIET: dict[str, Any] = {'show_progress': 'hidden', 'trigger_mode': 'always_last', 'api_visibility': 'private'}


def build_page(subjects: Sequence[Subject], samples: Sequence[Sample] = (), note: str = '') -> gr.Blocks:
    """The page, to be shown by `show_page`.

    Args:
        subjects: one model, or several that are compared.
        samples: photographs to pick from.
        note: a line above everything.

    Raises:
        UsageError: the models have different classes.
    """
    answers = Answers(subjects)
    with gr.Blocks(title=answers.title, analytics_enabled=False, delete_cache=(_KEPT // 10, _KEPT)) as page:
        if note:
            gr.HTML(f'<p>{escape(note)}</p>')
        _connect(_lay_out(answers, samples), answers, samples)
    for block in page.blocks.values():
        _keep_to_this_machine(block)
    return page


@dataclass(frozen=True)
class _Parts:
    """The parts of the page that do something; labels, maps and rows of maps are those of each model."""

    photo: gr.Image
    gallery: gr.Gallery | None
    expected: gr.Dropdown
    sliders: list[gr.Slider]
    labels: list[gr.Label]
    maps: list[gr.Image]
    rows: list[gr.HTML]


def _lay_out(answers: Answers, samples: Sequence[Sample]) -> _Parts:
    with gr.Row():
        with gr.Column(scale=2, min_width=350):
            photo = _photograph()
            gallery = _gallery(samples, answers.names) if samples else None
            menu: dict[str, Any] = {'multiselect': answers.multi_label, 'label': 'expected class'}
            expected = gr.Dropdown(answers.names, value=None, type='index', **menu)
            threshold = gr.Slider(0, 1, 0, step=0.05, label='map shown above')
            opacity = gr.Slider(0, 1, MAP_WEIGHT, step=0.05, label='opacity')
        with gr.Column(scale=3 * len(answers.subjects), min_width=300), gr.Row():
            columns = [_column(subject.caption) for subject in answers.subjects]
    labels, maps, rows = zip(*columns, strict=True)
    return _Parts(photo, gallery, expected, [threshold, opacity], list(labels), list(maps), list(rows))


def _connect(parts: _Parts, answers: Answers, samples: Sequence[Sample]) -> None:
    """What happens when somebody uploads, picks, clicks or slides."""
    sights, asked = gr.State(time_to_live=_KEPT), gr.State(time_to_live=_KEPT)
    seen, pictures = [parts.expected, sights, asked, *parts.labels], [*parts.maps, *parts.rows]
    shown = [sights, asked, parts.expected, *parts.sliders]
    paint: dict[str, Any] = _QUIET | {'fn': answers.paint, 'inputs': shown, 'outputs': pictures}

    def read_upload(path: str | None) -> list[Any]:
        return [None, *_look(answers, path)]

    def forget(path: str | None) -> Any:
        # whatever takes the photograph away ends here: other events still bring it along
        return gr.skip() if path else [None, *answers.look(None), *answers.paint(None, None, None, 0, 1)]

    def read_sample(event: gr.SelectData) -> list[Any]:
        sample = samples[event.index]
        names = [answers.names[index] for index in sample.expected]
        there = names if answers.multi_label else next(iter(names), None)
        return [_enlarged(sample.photo), there, *answers.look(sample.photo)]

    def ask(event: gr.SelectData) -> int:
        return answers.names.index(event.value)

    parts.photo.upload(read_upload, parts.photo, seen, **_QUIET).success(**paint)
    parts.photo.change(forget, parts.photo, [*seen, *pictures], **_QUIET)
    if parts.gallery is not None:
        parts.gallery.select(read_sample, None, [parts.photo, *seen], **_QUIET).success(**paint)
    for label in parts.labels:
        label.select(ask, None, asked, **_QUIET).success(**paint)
    settings: list[Any] = [parts.expected, *parts.sliders]
    for setting in settings:
        setting.input(**paint)


def own_names(host: str | None) -> list[str]:
    """The names under which alone a page on this machine's loopback address answers; none for other addresses.

    Any web page could otherwise ask for it under a name of its own that leads here (DNS rebinding).
    """
    host = host or os.environ.get('GRADIO_SERVER_NAME', '127.0.0.1')  # as Gradio takes it
    loopback = host == 'localhost' or host.startswith('127.')
    return ['localhost', '127.0.0.1', host] if loopback and 'SPACE_ID' not in os.environ else []


def show_page(page: gr.Blocks, **options: Any) -> str:
    """Serve the page, and give its address at once; on a loopback address to this machine's own names alone."""
    if names := own_names(options.get('server_name')):
        options['app_kwargs'] = {'middleware': [Middleware(TrustedHostMiddleware, allowed_hosts=names)]}
    try:
        _, address, _ = page.launch(
            quiet=True,
            prevent_thread_lock=True,
            share=False,
            show_error=True,
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            css_paths=_CSS,
            theme=gr.themes.Default(primary_hue='blue', **_FONTS),
            **options,
        )
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:  # Gradio asks for its own page
        raise UsageError(f'the page cannot be served: {first_lines(error)}') from error
    return str(address)


def _look(answers: Answers, path: str | None) -> list[Any]:
    try:
        return answers.look(load_photo(Path(path)) if path else None)
    except (DataError, UsageError) as error:
        message = str(error).replace(str(path), Path(str(path)).name)
        gr.Warning(message)
        return answers.look(None)  # nothing stays of the photograph before


def _enlarged(photo: Image.Image) -> Image.Image:
    """A photograph of a few pixels as large as the page shows others."""
    factor = max(1, _HEIGHT // max(photo.size))
    return photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.NEAREST)


def _photograph() -> gr.Image:
    """An upload that is left to `load_photo`: Gradio would read any image of this machine."""
    photo = gr.Image(label='photograph', sources=['upload', 'webcam', 'clipboard'], height=_HEIGHT, buttons=[])

    def uploaded(payload: Any) -> str | None:
        if payload is None:
            return None
        path = Path(payload.path or '').resolve()
        if not path.is_relative_to(Path(photo.GRADIO_CACHE).resolve()):
            raise gr.Error(_REFUSED, print_exception=False)
        return str(path)

    photo.preprocess = uploaded  # type: ignore[method-assign]
    return photo


def _keep_to_this_machine(block: Any) -> None:
    """Gradio fetches a file for whoever gives an address in place of what a part of the page wants."""
    move = block.async_move_resource_to_block_cache

    async def move_of_this_machine(path: Any) -> str | None:
        if '://' in str(path):
            raise gr.Error(_REFUSED, print_exception=False)
        found: str | None = await move(path)
        return found

    block.async_move_resource_to_block_cache = move_of_this_machine


def _gallery(samples: Sequence[Sample], names: Sequence[str]) -> gr.Gallery:
    pictures = [(each.photo, ', '.join(names[index] for index in each.expected)) for each in samples]
    options: dict[str, Any] = {'columns': 3, 'height': _HEIGHT, 'allow_preview': False, 'buttons': []}
    return gr.Gallery(pictures, show_label=False, interactive=False, **options)


def _column(caption: str) -> tuple[gr.Label, gr.Image, gr.HTML]:
    """Classes, map and rows of maps of one model."""
    with gr.Column(min_width=300):
        label = gr.Label(
            label=f'{caption}: click a class to see its map', show_heading=False, elem_classes='class-names'
        )
        picture = gr.Image(label='map', interactive=False, format='png', buttons=['download', 'fullscreen'])
        return label, picture, gr.HTML()
