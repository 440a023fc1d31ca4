"""What is published: a folder with weights, config, card, and the records of the run."""

import copy
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from timm_hnc.cam import CamModel
from timm_hnc.cam.copies import evaluating
from timm_hnc.errors import DataError, first_lines
from timm_hnc.hub.card import CardFacts, data_name, render_card, without_folders
from timm_hnc.hub.weights import WEIGHTS, find_weights, save_pretrained
from timm_hnc.plots.run_files import read_figures, read_result
from timm_hnc.rows import write_json
from timm_hnc.run_options import read_options

_SEED = 0  # of the image that weights are tried with


def bundle_model(
    model: Any,
    folder: Path,
    facts: CardFacts,
    class_names: Sequence[str] | None = None,
    data_config: dict[str, Any] | None = None,
    hnc: dict[str, Any] | None = None,
) -> None:
    """Write weights, config and card of a model, and see that they load.

    Args:
        model: a timm model or CamModel.
        folder: made if it is missing.
        facts: for the card; the config is put in here.
        class_names: label names, one a class.
        data_config: input size, mean, std, interpolation and crop.
        hnc: what stands in the config's `hnc` block.

    Raises:
        DataError: the weights do not give the same logits when they are loaded again.
        OSError: the folder cannot be written.
    """
    save_pretrained(model, folder, class_names, data_config, hnc)
    check_weights(folder, model)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'README.md').write_text(render_card(replace(facts, config=config)), encoding='utf-8')


def bundle_run(
    run: Path, folder: Path, repo_id: str, baseline: Path | None = None, licence: str = 'apache-2.0'
) -> None:
    """Write what a run folder has to show: its best weights, card, options, epochs, result and a CAM panel.

    Absolute paths in options and command line are cut to their last part.

    Args:
        run: run folder.
        folder: made if it is missing.
        repo_id: user/name.
        baseline: run folder whose figures stand beside those of the run.
        licence: identifier of the Hub's.

    Raises:
        DataError: the run has no weights, or they are damaged.
        OSError: the folder cannot be written.
    """
    weights = find_weights(run)
    if weights is None:
        raise DataError(f"'{run}' is no run folder with weights: there is no model_best in it.")
    options, result = _portable(read_options(run)), read_result(run)
    if result.get('command'):
        result = {**result, 'command': shlex.join(without_folders(shlex.split(result['command'])))}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights / WEIGHTS, folder / WEIGHTS)
    config = json.loads((weights / 'config.json').read_text())
    config['hnc'] = _hnc_block(config, options, result)
    write_json(folder / 'config.json', config)
    check_weights(folder, _load(weights))
    (folder / 'args.yaml').write_text(yaml.safe_dump(options, default_flow_style=False))
    if result:
        write_json(folder / 'result.json', result)
    if (run / 'summary.csv').is_file():
        shutil.copyfile(run / 'summary.csv', folder / 'summary.csv')
    picture = run / 'cams' / 'best.png'
    if picture.is_file():
        shutil.copyfile(picture, folder / 'cams.png')
    facts = CardFacts(
        repo_id,
        config,
        licence,
        read_figures(run),
        read_figures(baseline) if baseline else {},
        options,
        result,
        has_picture=picture.is_file(),
    )
    (folder / 'README.md').write_text(render_card(facts), encoding='utf-8')


def _portable(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: without_folders([value])[0] if isinstance(value, str) else value for name, value in options.items()}


def _hnc_block(config: dict[str, Any], options: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    several = options.get('task') == 'multilabel'
    return {
        **({'variant': 'none', 'weight': None, 'topk': None} | (config.get('hnc') or {})),
        'criterion': options.get('loss') or ('bce' if several else 'ce'),
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
    """See that saved weights give the logits of the model that they were saved from, bit by bit.

    Raises:
        DataError: they do not, or do not load at all.
    """
    plain = model.model if isinstance(model, CamModel) else model
    plain = copy.deepcopy(plain).cpu().float().to(memory_format=torch.contiguous_format)
    loaded = _load(folder)
    size = tuple(loaded.pretrained_cfg['input_size'])
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(_SEED))
    with evaluating(plain), evaluating(loaded):
        expected, found = plain(image), loaded(image)
    if not torch.equal(expected, found):
        raise DataError(
            f"the weights in '{folder}' give other logits than the model when they are loaded again (largest "
            f'difference {(expected - found).abs().max():.3g}): nothing is published.'
        )
