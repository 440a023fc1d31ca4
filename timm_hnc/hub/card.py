"""The model card of published weights: README.md with the Hub's metadata. Its text is templates/card.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader

from timm_hnc.files.run_parts import Part
from timm_hnc.hub.portable import data_name, is_hub_name
from timm_hnc.losses.factory import LOSSES
from timm_hnc.report.figure_table import figure_table

# names of figures as the Hub's leaderboards and metric pages have them, in percent
_METRICS = {'top1': ('accuracy', 'top-1 accuracy'), 'top5': ('accuracy', 'top-5 accuracy'), 'map': ('mAP', 'mAP')}


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Args:
        repo_id: user/name.
        config: of config.json.
        licence: identifier of the Hub's, such as 'apache-2.0', None where nobody said.
        figures: final figures by name, empty where nothing was measured.
        baseline: figures of the run that they are compared with.
        options: of args.yaml.
        result: of result.json.
        has_picture: cams.png lies beside the card.
        has_maps: the model has exact class activation maps.
        changes: parts of the run that went on with other options.
        revision: branch of the repository, main if None.
    """

    repo_id: str
    config: Mapping[str, Any]
    licence: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    has_picture: bool = False
    has_maps: bool = True
    changes: Sequence[Part] = ()
    revision: str | None = None


def render_card(facts: CardFacts) -> str:
    """README.md: metadata, what it is, figures, how to load it, how it was trained, limits."""
    templates = Environment(loader=PackageLoader('timm_hnc.hub'), trim_blocks=True, lstrip_blocks=True)
    hnc = facts.config.get('hnc') or {}
    columns = [facts.baseline, facts.figures] if facts.baseline else [facts.figures]
    size = (facts.config.get('pretrained_cfg') or {}).get('input_size') or (3, 224, 224)
    return templates.get_template('card.md').render(
        **vars(facts),
        metadata=_metadata(facts).to_yaml(),
        name=facts.repo_id.split('/')[-1],
        architecture=facts.config['architecture'],
        ours=facts.config['architecture'].startswith('cifar_'),
        num_classes=facts.config['num_classes'],
        size=size,
        mode=facts.options.get('input_img_mode') or {1: 'L', 3: 'RGB'}.get(size[0]),
        several_labels=facts.options.get('task') == 'multilabel',
        criterion=hnc.get('criterion'),
        note=getattr(LOSSES.get(hnc.get('criterion') or ''), 'export_note', ''),
        hnc=_hnc_text(hnc),
        map_losses=', '.join(facts.options.get('map_loss') or []),
        teacher=facts.options.get('map_teacher'),
        distilled=facts.options.get('kd_model_name'),
        patches=facts.options.get('naflex_max_seq_len') if facts.options.get('naflex_loader') else None,
        learned=facts.options.get('kd_distill_type'),
        data=data_name(facts.options),
        table=figure_table(columns),
    )


def _hnc_text(hnc: Mapping[str, Any]) -> str:
    """What is known of the loss, empty where it was not used."""
    if hnc.get('variant', 'none') == 'none':
        return ''
    weight = f', weight {hnc["weight"]:g}' if hnc.get('weight') is not None else ''
    topk = f', top {hnc["topk"]} negatives' if hnc.get('topk') is not None else ''
    alpha = f', alpha {hnc["alpha"]:g}' if hnc.get('alpha') else ''
    reduction = f', {hnc["reduction"]} over them' if hnc.get('reduction', 'sum') != 'sum' else ''
    return f'`{hnc["variant"]}`{weight}{topk}{reduction}{alpha}'


def _metadata(facts: CardFacts) -> ModelCardData:
    hnc, data = facts.config.get('hnc') or {}, data_name(facts.options)
    tags = ['image-classification', 'timm', *(['class-activation-map'] if facts.has_maps else [])]
    tags += ['hnc'] if hnc.get('variant', 'none') != 'none' else []
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=data or 'unknown',
            dataset_name=data or 'unknown',
            metric_type=kind,
            metric_name=title,
            metric_value=round(facts.figures[name], 4),
        )
        for name, (kind, title) in _METRICS.items()
        if name in facts.figures
    ]
    return ModelCardData(
        library_name='timm',
        license=facts.licence,
        pipeline_tag='image-classification',
        tags=tags,
        datasets=[data] if is_hub_name(facts.options.get('dataset')) else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=facts.repo_id.split('/')[-1] if results else None,
        eval_results=results or None,
    )
