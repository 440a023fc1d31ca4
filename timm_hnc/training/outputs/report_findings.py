"""What a run's report shows of its best weights: map quality, examples, confusions, robustness."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from timm.task import evaluation_sample_limit

from timm_hnc.attacks.attacks import Attack, normalized
from timm_hnc.cam.heads.probe import UnsupportedHead
from timm_hnc.data.loading.loaders import sample_order
from timm_hnc.errors import first_lines
from timm_hnc.evaluation.confusions import ConfusionPass
from timm_hnc.evaluation.evaluate import create_evaluator, evaluate
from timm_hnc.evaluation.map_pass import MapPass, QualityPass, WatchedMaps
from timm_hnc.evaluation.robustness import Threat, robust_figures
from timm_hnc.files.tables import write_both, write_csv, write_json
from timm_hnc.progress import progress
from timm_hnc.report.examples import ExamplePass, write_examples
from timm_hnc.training.outputs.picture_samples import restored, spread_samples
from timm_hnc.training.outputs.results import writing
from timm_hnc.training.setup.build import Run

TOPK = 10  # negatives of each image whose maps are measured
CONFUSIONS = 20
ATTACKED_IMAGES = 256
ATTACKED_EPS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
_logger = logging.getLogger(__name__)


class Findings:
    """Looks at the maps of a model while it is evaluated, and attacks a few images, for `report/` of the run."""

    def __init__(self, run: Run, model: Any) -> None:
        self.run, self.model = run, run.classifier(model)
        self.watched: WatchedMaps | None = None
        names, limit = run.data.class_names, evaluation_sample_limit(run.data.eval_loader)
        try:
            cam_model = run.wrap(model)
        except UnsupportedHead as error:
            _logger.info(f'No class maps in the report: {error}')
            return
        multi_label = run.options.task.multi_label
        order = sample_order(run.data.eval_loader)
        self.examples = ExamplePass(partial(restored, run), names, multi_label, order)
        self.confusions = ConfusionPass(names)
        self.passes: list[MapPass] = [self.examples]
        # other maps cost a backward pass each
        if cam_model.kind.trainable:
            self.passes += [QualityPass(names, TOPK), self.confusions]
        self.watched = WatchedMaps(cam_model, self.passes, limit, strict=False)

    def evaluate(self, evaluate_model: Callable[..., dict[str, float]]) -> dict[str, float]:
        """Evaluate, with a look at the maps where there are any."""
        if self.watched is None:
            return evaluate_model(self.run.compiled(self.model))
        return evaluate_model(self.watched, self.watched.before(lambda output, target: (output, target)))

    def write(self, final: dict[str, float]) -> None:
        """Write figures, examples, confusions and robustness, each as CSV and JSON."""
        accelerator = self.run.accelerator
        maps = self.watched.figures(accelerator) if self.watched else {}
        failure = next(filter(None, gather_object([self.watched.failure if self.watched else ''])), '')
        if failure:
            _logger.warning(f'No class maps in the report: {failure}')
            self.watched, maps = None, {}
        if not accelerator.is_main_process:
            return
        folder = self.run.folder / 'report'
        with writing(folder):
            folder.mkdir(exist_ok=True)
            write_json(folder / 'figures.json', final | maps)
            write_csv(folder / 'figures.csv', [final | maps])
            if self.watched:
                write_examples(folder, self.examples.kept)
                write_both(folder / 'confusions', self.confusions.rows(CONFUSIONS))
            self._write_robustness(folder)

    def _write_robustness(self, folder: Path) -> None:
        run = self.run
        if run.data.patches is not None:
            _logger.info('No robustness in the report: attacks are for images of one shape, these are NaFlex batches.')
            return
        samples = spread_samples(run, ATTACKED_IMAGES)
        if samples is None:
            return
        device = run.accelerator.device
        size = run.options.batches.eval_batch_size
        batches = [
            (inputs.to(device, run.options.device.input_dtype), target.to(device))
            for inputs, target in zip(*(part.split(size) for part in samples), strict=True)
        ]
        threshold = run.options.task.multilabel_threshold
        evaluator = partial(create_evaluator, batches, device, run.options.task.multi_label, threshold)
        clean = evaluate(self.model, batches, evaluator(), run.accelerator.autocast)
        threat = Threat([Attack('fgsm', eps) for eps in ATTACKED_EPS], seed=run.options.loader.seed)
        classifier = normalized(self.model, run.data.config['mean'], run.data.config['std'])
        inputs = partial(progress, batches, 'batch', description='FGSM')
        try:
            robust = robust_figures(classifier, inputs, evaluator, threat, run.accelerator.autocast, clean)
        except (ValueError, RuntimeError) as error:
            _logger.warning(f'No robustness in the report: {first_lines(error)}')
            return
        about = {'attack': 'fgsm', 'space': 'pixel', 'images': len(samples[0])}
        rows = [about | {'eps': 0.0} | clean]
        for each in threat.attacks:
            start = f'{each.name}_{each.eps:g}_'
            rows.append(about | {'eps': each.eps} | {name: robust[start + name] for name in clean})
        write_both(folder / 'robustness', rows)
