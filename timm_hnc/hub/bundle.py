"""What is published: a folder with weights, config, card, and the records of the run."""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch

from timm_hnc.cam import CamModel
from timm_hnc.cam.heads.model_copies import evaluating
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.errors import DataError, first_lines
from timm_hnc.files.run_options import dump_yaml, read_options
from timm_hnc.files.run_parts import read_parts
from timm_hnc.files.tables import write_json
from timm_hnc.hub.card import CardFacts, render_card
from timm_hnc.hub.portable import data_name, portable, portable_options, portable_result
from timm_hnc.report.run_files import numbers, read_figures, read_result
from timm_hnc.weights.loading import WITH_WEIGHTS
from timm_hnc.weights.saving import WEIGHTS, find_weights, plain_model, save_pretrained

_SEED = 0  # of the image that weights are tried with


def bundle_model(
    model: Any,
    folder: Path,
    facts: CardFacts,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    data_config: dict[str, Any] | None = None,
    hnc: dict[str, Any] | None = None,
) -> None:
    """Write weights, config and card of a model, and see that they load; arguments as of `save_pretrained`.

    Raises:
        DataError: the weights do not give the same logits when they are loaded again.
        OSError: the folder cannot be written.
    """
    model = plain_model(model)
    save_pretrained(model, folder, class_names, data_config, hnc)
    check_weights(folder, model)
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    config['pretrained_cfg'].pop('license', None)  # timm's, of weights that these may not be
    if facts.licence:
        config['pretrained_cfg']['license'] = facts.licence
    write_json(folder / 'config.json', config)
    facts = replace(facts, config=config, has_maps=has_maps(model))
    (folder / 'README.md').write_text(render_card(facts), encoding='utf-8')


def bundle_run(
    run: Path,
    folder: Path,
    repo_id: str,
    baseline: Path | None = None,
    licence: str | None = None,
    result: Mapping[str, Any] | None = None,
    with_picture: bool = True,
    revision: str | None = None,
) -> None:
    """Write what a run folder has to show: its best weights, card, options, epochs, result and a CAM panel.

    Of paths in options and command line that lead elsewhere only the last part stays.

    Args:
        run: run folder.
        folder: made if it is missing.
        repo_id: user/name.
        baseline: run folder whose figures stand beside those of the run.
        licence: identifier of the Hub's; that of the weights the run started from if None and they have one.
        result: what result.json would say of a run that is not finished; that of the folder if None.
        with_picture: the panel in cams/ is of these weights.
        revision: branch that it is for, main if None.

    Raises:
        DataError: the run has no weights, or they are damaged, or a record of it is.
        OSError: the folder cannot be written.
    """
    weights = find_weights(run)
    if weights is None:
        raise DataError(f"'{run}' is no run folder with weights: there is no model_best in it.")
    options, found = read_options(run), read_result(run) if result is None else result
    figures = read_figures(run) if result is None else numbers(found.get('final') or {})
    compared = check_baseline(baseline) if baseline else {}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights / WEIGHTS, folder / WEIGHTS)
    model, config = _load(weights), json.loads((weights / 'config.json').read_text(encoding='utf-8'))
    parts = read_parts(run)
    licence = _set_licence(config, parts[0].options if parts else options, licence)
    config['hnc'] = _hnc_block(config, options, found)
    write_json(folder / 'config.json', config)
    check_weights(folder, model)
    records = portable_options(options), portable_result(found)
    (folder / 'args.yaml').write_text(dump_yaml(records[0]), encoding='utf-8')
    if found:
        write_json(folder / 'result.json', records[1])
    if (run / 'summary.csv').is_file():
        shutil.copyfile(run / 'summary.csv', folder / 'summary.csv')
    picture = run / 'cams' / 'best.png'
    has_picture = with_picture and picture.is_file()
    if has_picture:
        shutil.copyfile(picture, folder / 'cams.png')
    changes = [replace(part, changed=portable(part.changed)) for part in parts[1:]]
    facts = CardFacts(
        repo_id, config, licence, figures, compared, *records, has_picture, has_maps(model), changes, revision
    )
    (folder / 'README.md').write_text(render_card(facts), encoding='utf-8')


def check_baseline(run: Path) -> dict[str, float]:
    """Figures of a run to compare with."""
    figures = read_figures(run)
    if not figures:
        raise DataError(f"--baseline '{run}' is no run folder with figures.")
    return figures


def has_maps(model: Any) -> bool:
    """Whether a timm model has exact class activation maps."""
    try:
        CamModel(model)
    except UnsupportedHead:
        return False
    return True


def _set_licence(config: dict[str, Any], options: Mapping[str, Any], licence: str | None) -> str | None:
    """The licence, in the config as well: timm notes there that of its own weights, whether a run began with them."""
    inner = config.get('pretrained_cfg') or {}
    began_with_weights = options.get('pretrained') or str(options.get('model')).startswith(WITH_WEIGHTS)
    # a file says nothing of its licence
    of_file = options.get('pretrained_path') or options.get('initial_checkpoint')
    of_file = of_file or 'file' in (options.get('pretrained_cfg_overlay') or {})
    began_with_weights = began_with_weights and not of_file
    licence = licence or (inner.get('license') if began_with_weights else None)
    inner.pop('license', None)
    if not began_with_weights:
        inner.pop('tag', None)  # of timm's weights, which these are not
    if licence:
        inner['license'] = licence
    return licence


def _hnc_block(config: dict[str, Any], options: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    multi_label = options.get('task') == 'multilabel'
    default = 'bce' if multi_label else 'ce'
    return {
        **({'variant': 'none', 'weight': None, 'topk': None} | (config.get('hnc') or {})),
        'criterion': options['loss'] or default if 'loss' in options else None,
        'dataset': data_name(options),
        'versions': result.get('versions') or {},
    }


def _load(folder: Path) -> Any:
    try:
        return timm.create_model(f'local-dir:{folder}', pretrained=True)
    except Exception as error:  # safetensors, torch and timm each have errors of their own
        raise DataError(f"the weights in '{folder}' do not load: {first_lines(error)}") from error


@torch.no_grad()
def check_weights(folder: Path, model: Any) -> None:
    """See that saved weights give the logits of the model that they were saved from, bit by bit."""
    plain = copy.deepcopy(plain_model(model)).cpu().float().to(memory_format=torch.contiguous_format)
    loaded = _load(folder)
    size = tuple(loaded.pretrained_cfg['input_size'])
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(_SEED))
    with evaluating(plain), evaluating(loaded):
        expected, found = plain(image), loaded(image)
    if not expected.isfinite().all():
        raise DataError('the weights give logits that are not finite: nothing is published.')
    if not torch.equal(expected, found):
        raise DataError(
            f"the weights in '{folder}' give other logits than the model when they are loaded again (largest "
            f'difference {(expected - found).abs().max():.3g}): nothing is published.'
        )
