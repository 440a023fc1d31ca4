"""One training step with HNC, pictures and validation, on one small model of every kind of head."""

import pytest
from running import result, summary, train, validate

from timm_hnc import create_model

SMALLEST = {
    'A1': ['test_resnet'],
    'B': ['repvit_m0_9', '--model-kwargs', 'embed_dim=(16,32)', 'depth=(1,1)'],
    'C': ['test_convnext', '--model-kwargs', 'depths=(1,1,1,1)', 'dims=(16,16,16,16)'],
    'D': ['mobilenetv3_small_050'],
    'E': ['efficientvit_b0', '--model-kwargs', 'widths=(4,8,16,32,64)', 'depths=(1,1,1,1,1)', 'head_widths=(64,80)'],
    'F': ['test_vit3', '--model-kwargs', 'depth=2'],
    'G with --gp avg': ['test_vit', '--model-kwargs', 'img_size=64', 'depth=2', '--gp', 'avg'],
    'H': ['efficientvim_m1', '--img-size', '128', '--model-kwargs', 'embed_dim=(24,32,40)', 'depths=(1,1,1)'],
}
WITH_PICTURES = ('A1', 'F', 'H')  # of one linear layer, with attention, of several branches


@pytest.mark.parametrize('kind', SMALLEST)
def test_one_step(kind, images, tmp_path, capsys):
    folder = train(
        *('--data-dir', images, '--num-classes', 3, '--img-size', 64, '--model', *SMALLEST[kind]),
        *('--workers', 0, '-b', 24, '--epochs', 1, '--device', 'cpu', '--hnc', 'kd', '--hnc-topk', 2),
        *('--cam-images', 2 if kind in WITH_PICTURES else 0, '--output', tmp_path, '--experiment', 'run'),
        *(() if kind == 'H' else ('--no-report',)),
    )
    model = create_model(f'local-dir:{folder / "model_best"}')
    assert model.kind.trainable
    assert model.kind.name == {'G with --gp avg': 'C'}.get(kind, kind)
    assert kind not in WITH_PICTURES or (folder / 'cams' / 'best.png').stat().st_size > 1000
    found = validate(capsys, '--checkpoint', folder, '--workers', 0)
    assert found['loss'] == pytest.approx(result(folder)['final']['loss'], rel=1e-4)
    assert summary(folder)[0]['train_hnc'] > 0
