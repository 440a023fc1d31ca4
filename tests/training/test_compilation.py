"""--torchcompile: what trains and what is evaluated is compiled, and nothing else of the run changes."""

from collections import Counter

import pytest
import timm
import torch
from running import SMALL, arguments, best_weights, result, train, training_state
from torch._dynamo.eval_frame import OptimizedModule

import timm_hnc.training.fit
import timm_hnc.training.run

BATCHES = 3, 2  # of 16 images, to train on and to evaluate
MARGIN = '--loss lmc --map-loss separability'
# compiled in half the time of ResNet
VIT = [
    *('--model', 'vit_tiny_patch16_224', '--gp', 'avg', '--model-kwargs', 'img_size=32', 'patch_size=8'),
    *('class_token=False', 'fc_norm=False', 'embed_dim=32', 'num_heads=2', 'depth=1'),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope='module')
def calls():
    """A backend that counts the calls of what it compiled, with gradients and without."""
    counted = Counter()

    @torch._dynamo.register_backend(name='counting')
    def counting(graph, inputs):
        def run(*inputs):
            counted['train' if torch.is_grad_enabled() else 'evaluate'] += 1
            return graph(*inputs)

        return run

    return counted


@pytest.fixture
def seen(monkeypatch):
    """The run, and the models that were evaluated."""
    seen = {'runs': [], 'models': []}
    build_run, evaluate = timm_hnc.training.run.build_run, timm_hnc.training.fit.evaluate

    def built(*args):
        seen['runs'].append(build_run(*args))
        return seen['runs'][-1]

    def evaluated(model, *args, **kwargs):
        seen['models'].append(model)
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr('timm_hnc.training.run.build_run', built)
    monkeypatch.setattr('timm_hnc.training.fit.evaluate', evaluated)
    return seen


@pytest.mark.parametrize(
    ('options', 'epochs'),
    [('--hnc mse --model-ema --model-ema-decay 0.5', 1), ('--hnc kd', 1), (MARGIN, 2)],
    ids=['moving average', 'model', 'copy with another classifier'],
)
def test_the_same_run_compiled(options, epochs, images, tmp_path, calls, seen):
    """Every batch goes through one graph, of the task or of what is evaluated; the files are those of a plain run."""
    model = [] if options == MARGIN else VIT  # that case is about running statistics too
    argv = ['--data-dir', images, *SMALL, *model, '-b', 16, '--epochs', epochs, '--warmup-epochs', 0, '--lr', 0.05]
    argv += [*options.split(), '--model-dtype', 'float64', '--output', tmp_path]
    plain = train(*argv, '--experiment', 'plain')
    calls.clear()
    seen['models'].clear()
    compiled = train(*argv, '--experiment', 'compiled', '--torchcompile', 'counting')
    # every epoch, and the best weights once more
    assert calls == {'train': epochs * BATCHES[0], 'evaluate': (epochs + 1) * BATCHES[1]}
    run = seen['runs'][-1]
    assert isinstance(run.task, OptimizedModule)
    weights = run.ema.module if '--model-ema' in options else run.model
    assert (run.evaluated_model is weights) == (options != MARGIN)
    for model in seen['models']:
        assert isinstance(model, OptimizedModule)
        assert model._orig_mod is run.evaluated_model

    for part, state in training_state(plain).items():
        if part in ('model', 'model_ema', 'loss'):
            torch.testing.assert_close(training_state(compiled)[part], state)
    torch.testing.assert_close(best_weights(compiled), best_weights(plain))
    for name, value in result(plain)['final'].items():
        assert result(compiled)['final'][name] == pytest.approx(value)
    loaded = timm.create_model(f'local-dir:{compiled / "model_best"}', pretrained=True)
    assert loaded.state_dict().keys() == best_weights(compiled).keys()
    assert arguments(compiled)['torchcompile'] == 'counting'
    if options == '--hnc kd':
        longer = train(*argv, '--experiment', 'compiled', '--epochs', 2, '--resume', 'auto')
        assert result(longer)['epochs'] == 2, 'it goes on uncompiled'


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['default', 'reduce-overhead', 'max-autotune'])
def test_modes_of_inductor(mode, images, tmp_path):
    argv = ['--data-dir', images, *SMALL, '--hnc', 'mse', '--model-ema', '--grad-accum-steps', 2]
    argv += ['--torchcompile', '--torchcompile-mode', mode, '--output', tmp_path, '--experiment', mode]
    assert torch.isfinite(torch.tensor(result(train(*argv))['final']['loss']))
