"""Files with class maps: what ONNX Runtime and torch.export make of them, beside PyTorch and PIL."""

import json
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import foolbox
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from small_models import DETACHED_MODELS, MODELS, TAIL_MODELS
from timm.data import create_transform, resolve_data_config
from timm.layers import CondConv2d
from timm.layers.conv2d_same import Conv2dSame

from timm_hnc import CamModel, save_pretrained
from timm_hnc.commands.command_line import run_command
from timm_hnc.commands.console import main
from timm_hnc.errors import DataError, UsageError
from timm_hnc.export import MapGraph, Outputs, Preprocessing, check, export_model
from timm_hnc.export import files as export_files
from timm_hnc.export import program as export_program
from timm_hnc.export.check import compare
from timm_hnc.export.program import trace
from timm_hnc.export.written_out import MixedOutputs, write_out

pytestmark = pytest.mark.skipif(torch.__version__ < '2.9', reason='export needs torch 2.9')
KINDS = {name: MODELS[name] for name in ('resnet', 'swin', 'vit_reg4', 'swiftformer')} | {
    name: DETACHED_MODELS[name] for name in ('repvit', 'convnext', 'mobilenetv3', 'efficientvit', 'vit_map')
}
SHALLOW = {'layers': (1, 1, 0, 0), 'channels': (16,) * 4}  # of a ResNet: an operation takes as long whatever its size
FAST = ('vit_map',)  # the others take up to 12 s each


@pytest.mark.parametrize(
    'name', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_a_program_of_every_kind_takes_any_batch_and_says_what_the_model_says(name):
    small = KINDS[name]
    cam_model = small.cam_model().eval()
    traced = trace(MapGraph(cam_model, Outputs('top3', contrast=True)), 3, small.image)
    module = traced.program.module()
    for batch in (1, 4):
        images = small.images(batch)
        with torch.no_grad():
            found, logits = module(images), cam_model.model(images)
            expected = cam_model.class_maps(images)
        torch.testing.assert_close(found['logits'], logits)
        classes = logits.sort(1, descending=True).indices[:, :3]
        assert torch.equal(found['classes'], classes)
        torch.testing.assert_close(found['maps'], expected.maps(classes))
        torch.testing.assert_close(found['maps'].mean((2, 3)), logits.gather(1, classes), atol=1e-4, rtol=1e-4)
        difference = logits.gather(1, classes[:, :1]) - logits.gather(1, classes[:, 1:])
        torch.testing.assert_close(found['contrast'].mean((2, 3)), difference, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope='module')
def resnet(tmp_path_factory):
    """A small network of the images that timm says, and its file."""
    torch.manual_seed(0)
    model = CamModel(timm.create_model('test_resnet', num_classes=7, **SHALLOW)).eval()
    path = tmp_path_factory.mktemp('resnet') / 'deep' / 'resnet.onnx'
    names = [f'class {index}' for index in range(7)]
    return model, path, export_model(model, path, outputs=Outputs('top2', contrast=True), class_names=names)


def run(path, images):
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {'images': images.numpy()})
    return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}


def test_onnx_takes_other_sizes_and_batches(resnet):
    model, path, exported = resnet
    assert not exported.fixed
    for shape in ((1, 3, 96, 160), (3, 3, 160, 96)):
        images = torch.randn(shape)
        found = run(path, images)
        with torch.no_grad():
            logits = model.model(images)
            features = model.model.forward_features(images)
        torch.testing.assert_close(found['logits'], logits, atol=1e-5, rtol=1e-4)
        classes = found['classes']
        torch.testing.assert_close(logits.gather(1, classes), logits.topk(2).values)
        maps = torch.einsum('kd,bdhw->bkhw', model.model.fc.weight, features) + model.model.fc.bias[:, None, None]
        chosen = torch.stack([image[index] for image, index in zip(maps, classes, strict=True)])
        torch.testing.assert_close(found['maps'], chosen, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found['contrast'], chosen[:, :1] - chosen[:, 1:], atol=1e-5, rtol=1e-4)


def test_the_file_says_what_it_holds(resnet):
    model, path, exported = resnet
    beside = json.loads(path.with_name('resnet.onnx.json').read_text())
    inside = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert beside['inputs'] == {'images': {'type': 'float32', 'shape': ['batch', 3, 'height', 'width']}}
    assert beside['outputs'] == {
        'logits': {'type': 'float32', 'shape': ['batch', 7]},
        'classes': {'type': 'int64', 'shape': ['batch', 2]},
        'maps': {'type': 'float32', 'shape': ['batch', 2, 'map_height', 'map_width']},
        'contrast': {'type': 'float32', 'shape': ['batch', 1, 'map_height', 'map_width']},
    }
    config = resolve_data_config({}, model=model.model)
    assert {name: beside['preprocessing'][name] for name in config} == json.loads(json.dumps(config))
    assert beside['class_names'] == [f'class {index}' for index in range(7)]
    assert beside.pop('opset') == exported.opset == onnx.load(path).opset_import[0].version
    assert {name: json.loads(inside[name]) if name in ('inputs', 'outputs') else inside[name] for name in inside} == {
        name: value if name in ('inputs', 'outputs') else value if isinstance(value, str) else json.dumps(value)
        for name, value in beside.items()
    }
    session = onnxruntime.InferenceSession(path)
    assert [output.shape for output in session.get_outputs()] == [each['shape'] for each in beside['outputs'].values()]
    assert exported.num_bytes == path.stat().st_size
    assert sorted(file.name for file in path.parent.iterdir()) == ['resnet.onnx', 'resnet.onnx.json']


@pytest.mark.parametrize('crop_mode', ['center', 'squash'])
def test_bytes_are_prepared_as_timm_prepares_photographs(crop_mode):
    """PIL resizes in steps of its own: a pixel may be a level or two off."""
    photos = sorted(Path(foolbox.__file__).parent.joinpath('data').glob('imagenet_*.*'))[:3]
    config = {'input_size': (3, 96, 96), 'interpolation': 'bicubic', 'mean': (0.5, 0.4, 0.3), 'std': (0.2, 0.3, 0.4)}
    config |= {'crop_pct': 0.9, 'crop_mode': crop_mode}
    transform, prepare = create_transform(**config), Preprocessing(config)
    for index, photo in enumerate(photos):
        image = Image.open(photo).convert('RGB').crop((0, 0, 200 + 11 * index, 221))  # even and odd, wide and high
        found = prepare(torch.from_numpy(np.array(image))[None])[0]
        levels = (found - transform(image)).abs() * torch.tensor(config['std'])[:, None, None] * 255
        assert levels.max() < 4
        assert levels.mean() < 0.3


def test_a_graph_that_takes_bytes(tmp_path):
    torch.manual_seed(0)
    model = CamModel(timm.create_model('test_resnet', num_classes=7, **SHALLOW)).eval()
    exported = export_model(model, tmp_path / 'bytes.onnx', outputs=Outputs('all'), preprocess=True)
    photo = sorted(Path(foolbox.__file__).parent.joinpath('data').glob('imagenet_*.*'))[0]
    image = Image.open(photo).convert('RGB').resize((300, 217))
    found = run(exported.path, torch.from_numpy(np.array(image))[None])
    prepared = create_transform(**resolve_data_config({}, model=model.model))(image)[None]
    with torch.no_grad():
        logits = model.model(prepared)
    assert (found['logits'] - logits).abs().max() < 0.01 * logits.abs().max()
    torch.testing.assert_close(found['maps'].mean((2, 3)), found['logits'], atol=1e-4, rtol=1e-4)


def test_a_program_that_takes_bytes_and_crops_one_side_alone(tmp_path):
    torch.manual_seed(0)
    model = CamModel(timm.create_model('test_resnet', num_classes=7, **SHALLOW)).eval()
    config = resolve_data_config({'crop_pct': 1.0}, model=model.model)
    path, whole = tmp_path / 'bytes.pt2', {'crop_pct': 1.0}
    export_model(model, path, 'pt2', Outputs('none'), preprocess=True, data_config=whole)
    program = torch.export.load(path).module()
    photo = sorted(Path(foolbox.__file__).parent.joinpath('data').glob('imagenet_*.*'))[0]
    for size in ((300, 217), (217, 300), (200, 200)):
        image = Image.open(photo).convert('RGB').resize(size)
        with torch.no_grad():
            logits = model.model(create_transform(**config)(image)[None])
        found = program(torch.from_numpy(np.array(image))[None])['logits']
        assert (found - logits).abs().max() < 0.01 * logits.abs().max()


class Padded(torch.nn.Module):
    """Its first convolution is padded as TensorFlow does it."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = Conv2dSame(3, 4, 3, stride=2), torch.nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


def padded():
    """It takes one size, and is exported in a moment."""
    return CamModel(Padded().eval(), image_size=(32, 48))


def test_what_does_not_agree_is_not_written(tmp_path, monkeypatch):
    model = padded()

    def spoiled(path):
        run = export_files._open_pt2(path)
        return lambda images: {name: values + (name == 'maps') for name, values in run(images).items()}

    images = torch.randn(1, 3, 32, 48)
    monkeypatch.setitem(export_files.READERS, 'pt2', spoiled)
    with pytest.raises(DataError, match=r"model\.pt2' is not written: its maps are 1 off PyTorch's"):
        export_model(model, tmp_path / 'model.pt2', 'pt2')
    assert list(tmp_path.iterdir()) == []
    coarse = padded()
    coarse.model.conv.register_forward_hook(lambda module, given, out: (out + 1e5) - 1e5)  # to a 128th in float32
    with pytest.raises(DataError, match=r'the maps of PyTorch are themselves 0\.0\d+ off those in float64'):
        export_model(coarse, tmp_path / 'model.pt2', 'pt2')
    model.model.fc.bias.data[3] = float('nan')
    agreement = compare(lambda images: {'logits': model.model(images)}, MapGraph(model, Outputs('none')), [images])
    assert not agreement.relative <= 1


def test_attention_with_a_bias_is_written_out_for_onnx(tmp_path):
    model = MODELS['relpos'].cam_model(depth=1).eval()
    exported = export_model(model, tmp_path / 'model.onnx')
    assert exported.agreement.relative < 1e-4
    assert any(getattr(module, 'fused_attn', False) for module in model.modules()), 'the model is as it was'


@pytest.mark.parametrize('padding', ['', 'same'])
def test_mixed_outputs_are_those_of_mixed_weights(padding):
    layer = torch.nn.Sequential(CondConv2d(8, 6, 3, 2, padding, groups=2, bias=True, num_experts=3)).double()
    images, shares = torch.randn(4, 8, 7, 9).double(), torch.rand(4, 3).double()
    expected = layer[0](images, shares)
    write_out(layer)
    torch.testing.assert_close(layer[0](images, shares), expected)
    assert type(layer[0]) is MixedOutputs


def test_the_command_exports_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, '_SECONDS', 0)
    model = timm.create_model('test_resnet', num_classes=3, **SHALLOW)
    save_pretrained(model, tmp_path / 'my-run' / 'model_best', ['ant', 'bee', 'cat'])
    main(['export', 'my-run', '--format', 'pt2'])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith('my-run.pt2: ')
    assert 'kind A1' in first
    assert len(rest) == 3
    assert json.loads(Path('my-run.pt2.json').read_text())['class_names'] == ['ant', 'bee', 'cat']
    images = torch.randn(2, 3, 64, 64)
    found = torch.export.load('my-run.pt2').module()(images)
    with torch.no_grad():
        torch.testing.assert_close(found['logits'], model.eval()(images))
    assert found['maps'].shape[1] == 3, 'of five classes, had it as many'
    assert run_command(main, ['export', 'my-run', '--num-classes', '7']) == 1
    assert "'my-run' has 3 classes, --num-classes says 7: leave it out." in capsys.readouterr().err


def test_both_files_are_written_or_none(tmp_path):
    (tmp_path / 'model.pt2').write_text('old')
    (tmp_path / 'model.pt2.json').mkdir()
    with pytest.raises(UsageError, match=r"model.pt2' cannot be written"):
        export_model(padded(), tmp_path / 'model.pt2', 'pt2')
    assert (tmp_path / 'model.pt2').read_text() == 'old'
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(UsageError, match=r"a.pt2' cannot be written"):
        export_model(padded(), tmp_path / 'model.pt2' / 'a.pt2', 'pt2')
    names = ['ant', 'bee', 'cat', 'dog', 'eel']
    exported = export_model(padded(), tmp_path / 'other.pt2', 'pt2', class_names=np.array(names))
    assert json.loads(exported.path.with_name('other.pt2.json').read_text())['class_names'] == names


def test_class_tokens(tmp_path):
    cam_model = TAIL_MODELS['vit'].cam_model().eval()
    with pytest.raises(UsageError, match=r"'test_vit' take a backward pass.*\(--gp avg\).*--maps none"):
        export_model(cam_model, tmp_path / 'vit.pt2', 'pt2')
    export_model(cam_model, tmp_path / 'vit.pt2', 'pt2', Outputs('none'))
    assert json.loads((tmp_path / 'vit.pt2.json').read_text())['outputs'].keys() == {'logits'}


def test_wrong_use(tmp_path, capsys, monkeypatch):
    (tmp_path / 'empty').mkdir()
    for argv, code, message in (
        (['test_resnet', '--maps', 'best'], 2, '--maps best: expected topK'),
        (['test_resnet', '--maps', 'top0'], 2, '--maps top0: expected topK'),
        (['test_resnet', '--maps', 'top8', '--num-classes', '7'], 2, '--maps top8: the model has 7 classes'),
        (['test_resnet', '--maps', 'all', '--contrast'], 2, '--contrast: needs --maps topK with a K of 2 or more'),
        (['test_resnet', '--format', 'tflite'], 2, '--format tflite: expected one of pt2, onnx'),
        (['test_resnet', '--out', str(tmp_path / 'weights.pth')], 2, 'expected the name of a file that ends in .onnx'),
        (['test_resnet', '--num-classes', '-3'], 2, '--num-classes -3: expected 1 or more.'),
        (['test_nothing'], 2, "'test_nothing' cannot be made: Unknown model"),
        ([str(tmp_path / 'gone')], 1, "gone' does not exist: expected a run folder, hf-hub:USER/NAME"),
        ([str(tmp_path / 'empty')], 1, "empty' is neither a run folder nor a folder of weights"),
    ):
        assert run_command(main, ['export', *argv]) == code, argv
        error = capsys.readouterr().err
        assert 'Traceback' not in error
        assert message in error, argv
    monkeypatch.setattr(export_files, '_TORCH', '99.0')
    assert run_command(main, ['export', 'test_resnet']) == 2
    assert 'export needs torch 99.0 or newer' in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(export_files, 'find_spec', lambda name: None)
    assert run_command(main, ['export', 'test_resnet']) == 2
    assert 'needs onnx, onnxscript, onnxruntime: pip install "timm_hnc[export]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'interpolation': 'lanczos'}, 'the model wants lanczos'),
        ({'crop_mode': 'border'}, 'the model wants a border crop of 96 x 96'),
        ({'input_size': (3, 96, 64)}, 'the model wants a center crop of 96 x 64'),
        ({'crop_pct': 1.2}, 'wants borders around its images'),
    ],
)
def test_preprocessing_that_a_graph_cannot_do(change, message):
    config = {'input_size': (3, 96, 96), 'interpolation': 'bicubic', 'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    with pytest.raises(UsageError, match=message):
        Preprocessing(config | {'crop_pct': 0.9, 'crop_mode': 'center'} | change)


def test_one_size_where_no_other_can_be_traced(monkeypatch, no_timer):
    graph = MapGraph(padded(), Outputs('top2')).eval()
    traced = trace(graph, 3, (32, 48))
    assert (traced.fixed, traced.sizes) == ('its padding depends on the size', ((32, 48),))
    images = torch.randn(3, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(traced.program.module()(images)['maps'], graph(images)['maps'])
    export = export_program._export

    def endless(graph, images, sides):
        if not sides:
            return export(graph, images, {})
        with suppress(TimeoutError):  # as torch may
            time.sleep(9)
        return time.sleep(9)

    monkeypatch.setattr(export_program, '_PADDED_BY_SIZE', ())
    monkeypatch.setattr(export_program, '_SECONDS', 0.5)
    monkeypatch.setattr(export_program, '_export', endless)
    assert trace(graph, 3, (32, 48)).fixed == 'torch.export of other sizes took more than 0.5 s'


class Pooled(torch.nn.Module):
    """Whatever the images, its classifier sees three by three."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.Linear(36, 5)

    def forward(self, x):
        return self.fc(torch.nn.functional.adaptive_avg_pool2d(self.conv(x), 3).flatten(1))


class Halving(Pooled):
    """It makes large images smaller first."""

    def forward(self, x):
        if x.shape[-1] > 400:
            x = torch.nn.functional.interpolate(x, scale_factor=0.5)
        return self.fc(self.conv(x).mean((2, 3)).repeat(1, 9))


def test_a_graph_of_images_up_to_a_size_is_one_of_one_size():
    model = CamModel(Halving().eval(), features='conv', image_size=(64, 64))
    traced = trace(MapGraph(model, Outputs('top2')), 3, (64, 64))
    assert traced.fixed == 'it does something else with images of more than 400 pixels'


def test_tokens_of_any_size():
    """Their grid is that of the image, and not one of as many cells."""
    model = CamModel(timm.create_model('test_vit', num_classes=5, global_pool='avg', depth=1).eval())
    traced = trace(MapGraph(model, Outputs('top2')), 3, (160, 160))
    assert not traced.fixed
    images = torch.randn(1, 3, 80, 320, generator=torch.Generator().manual_seed(0))  # as many cells as 160 x 160
    with torch.no_grad():
        found = traced.program.module()(images)
        expected = model.class_maps(images).maps(found['classes'])
    assert expected.shape[2:] == (5, 20)
    torch.testing.assert_close(found['maps'], expected)


def test_other_sizes_are_tried_with_other_grids(tmp_path):
    """Images that are a pixel larger have the same grid, and a graph that was made for it says nothing of others."""
    exported = export_model(CamModel(Pooled().eval(), image_size=(64, 64)), tmp_path / 'model.onnx')
    assert exported.sizes == ((64, 64),)
    assert exported.fixed
    beside = json.loads((tmp_path / 'model.onnx.json').read_text())
    assert beside['inputs']['images']['shape'] == ['batch', 3, 64, 64]


def test_one_size_where_the_file_takes_no_other(tmp_path, monkeypatch):
    plain = Padded().eval()
    plain.conv = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    model = CamModel(plain, image_size=(32, 48))

    def picky(path):
        run = export_files._open_pt2(path)

        def of_one_size(images):
            if images.shape[-2:] != (32, 48):
                raise IndexError('an index is out of bounds')
            return run(images)

        return of_one_size

    monkeypatch.setitem(export_files.READERS, 'pt2', picky)
    exported = export_model(model, tmp_path / 'model.pt2', 'pt2')
    assert exported.sizes == ((32, 48),)
    assert exported.fixed == 'an index is out of bounds'


class ObjectOutput(torch.nn.Module):
    """As transformers have it."""

    def __init__(self):
        super().__init__()
        self.inner = Padded()

    def forward(self, x):
        return SimpleNamespace(logits=self.inner(x))


def test_models_of_others(tmp_path):
    model = CamModel(ObjectOutput().eval(), image_size=(32, 48))
    exported = export_model(model, tmp_path / 'a.pt2', 'pt2', Outputs('none'))
    assert exported.sizes == ((32, 48),)
    beside = json.loads((tmp_path / 'a.pt2.json').read_text())
    assert beside['preprocessing'] == {'input_size': [3, 32, 48], 'in_graph': False}
    for arguments, message in (
        ({'preprocess': True}, '--preprocess: the model does not say its interpolation, mean, std'),
        ({'class_names': ['cat']}, '1 class names for 5 classes'),
        ({'data_config': {'input_size': (32, 48)}}, r'input_size \(32, 48\): expected \(3, height, width\)'),
        ({'data_config': {'input_size': 32}}, r'input_size 32: expected \(3, height, width\)'),
        ({'data_config': {'input_size': (1, 32, 48)}}, r'expected \(3, height, width\)'),
        (
            {'data_config': {'interpolaton': 'bicubic'}},
            "data_config has no 'interpolaton': expected some of",
        ),
        ({'data_config': {'std': (0.5, 0.0, 0.5)}}, 'expected numbers other than 0'),
        ({'data_config': {'mean': 'grey'}}, "mean 'grey': expected numbers"),
        ({'data_config': {'crop_pct': 0}}, 'crop_pct 0: expected a number above 0'),
        ({'data_config': {'mean': (0.5, 0.5)}}, r'mean \(0.5, 0.5\): expected a value for each of 3 channels'),
    ):
        with pytest.raises(UsageError, match=message):
            export_model(model, tmp_path / 'b.pt2', 'pt2', **arguments)
    for path in (tmp_path, tmp_path / 'model.bin'):
        with pytest.raises(UsageError, match='expected the name of a file that ends in'):
            export_model(model, path, 'pt2')
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.pt2', 'a.pt2.json']


def test_outputs_are_compared_one_by_one():
    class Graph(torch.nn.Module):
        def forward(self, images, classes):
            return {'logits': images[:, :4], 'maps': 100 * images}

    images = torch.rand(1, 6) + 1
    wrong = compare(lambda images: {'logits': images[:, :4] + 0.1, 'maps': 100 * images}, Graph(), [images])
    assert (wrong.name, round(wrong.difference, 3)) == ('logits', 0.1)
    assert wrong.relative > 0.04
    shaped = compare(lambda images: {'logits': images[:, :1], 'maps': 100 * images}, Graph(), [images])
    assert not shaped.relative <= 1


def test_what_onnx_cannot_say(tmp_path, monkeypatch):
    def cannot(program, path, about):
        raise NotImplementedError('no such operator')

    monkeypatch.setitem(export_files.WRITERS, 'pt2', cannot)
    with pytest.raises(DataError, match=r"a\.pt2' is not written: no such operator"):
        export_model(padded(), tmp_path / 'a.pt2', 'pt2')
    assert list(tmp_path.iterdir()) == []
