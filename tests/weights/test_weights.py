import json

import pytest
import safetensors.torch
import timm
import torch
from timm.layers import convert_splitbn_model
from timm.models import reparameterize_model
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from timm_hnc import CamModel, create_model
from timm_hnc.errors import UsageError
from timm_hnc.weights.opening import short_names
from timm_hnc.weights.saving import export_state_dict, save_pretrained


@pytest.fixture
def model():
    torch.manual_seed(3)
    model = timm.create_model('test_resnet', num_classes=4, output_stride=8)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    'wrap',
    [
        lambda model: model,
        CamModel,
        lambda model: torch.compile(CamModel(model)),
        lambda model: torch.compile(model),
        lambda model: torch.nn.DataParallel(CamModel(model)),
    ],
)
def test_what_is_saved_is_what_timm_loads(model, images, tmp_path, wrap):
    save_pretrained(wrap(model), tmp_path / 'a' / 'b')
    assert {path.name for path in (tmp_path / 'a' / 'b').iterdir()} == {'config.json', 'model.safetensors'}
    loaded = timm.create_model(f'local-dir:{tmp_path / "a" / "b"}', pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))


def test_ours_loads_the_weights_without_being_told(model, images, tmp_path):
    save_pretrained(model, tmp_path)
    assert torch.equal(create_model(f'local-dir:{tmp_path}').eval()(images), model(images))
    fresh = create_model(f'local-dir:{tmp_path}', pretrained=False).eval()
    assert not torch.equal(fresh(images), model(images))


def test_channels_last_weights_are_saved_contiguous(model, images, tmp_path):
    expected = model(images)
    save_pretrained(model.to(memory_format=torch.channels_last), tmp_path)
    state = safetensors.torch.load_file(tmp_path / 'model.safetensors')
    assert all(tensor.is_contiguous() for tensor in state.values())
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.allclose(loaded(images), expected, atol=1e-5)


def test_names_of_classes_by_index_keep_their_classes(tmp_path):
    model = timm.create_model('test_resnet', num_classes=12)
    names = [f'class {index}' for index in range(12)]
    mappings = [{kind(index): names[index] for index in (*range(6, 12), *range(6))} for kind in (int, str)]
    for number, mapping in enumerate(mappings):
        save_pretrained(model, tmp_path / str(number), mapping)
        assert create_model(f'local-dir:{tmp_path / str(number)}').class_names == names
    config = tmp_path / '0' / 'config.json'
    sorted_as_texts = dict(sorted(mappings[1].items()))
    config.write_text(json.dumps(json.loads(config.read_text()) | {'label_names': sorted_as_texts}))
    assert create_model(f'local-dir:{tmp_path / "0"}').class_names == names
    for wrong in ({index + 1: name for index, name in enumerate(names)}, {name: name for name in names}):
        with pytest.raises(UsageError, match='class_names: expected the indices 0 to 11 and a name for each'):
            save_pretrained(model, tmp_path / 'x', wrong)


def test_the_config_tells_classes_input_and_loss(model, tmp_path):
    data = {'input_size': (3, 48, 48), 'mean': (0.1, 0.2, 0.3), 'std': (0.5, 0.6, 0.7), 'interpolation': 'bicubic'}
    hnc = {'variant': 'kd', 'weight': 0.5}
    save_pretrained(model, tmp_path, ['a', 'b', 'c', 'd'], data | {'crop_pct': 0.9, 'crop_mode': 'center'}, hnc)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert (config['architecture'], config['num_classes']) == ('test_resnet', 4)
    assert (config['label_names'], config['hnc']) == (['a', 'b', 'c', 'd'], hnc)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    found = timm.data.resolve_data_config({}, model=loaded)
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()} == {
        **data,
        **{'crop_pct': 0.9, 'crop_mode': 'center'},
    }


def test_batch_norms_of_augmentation_splits_are_left_out(model, images, tmp_path):
    expected = model(images)
    split = convert_splitbn_model(model, 3)
    assert any('aux_bn' in name for name in split.state_dict())
    save_pretrained(split, tmp_path)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.equal(loaded(images), expected)


def test_an_export_shares_nothing_with_the_model(model):
    model.shared = model.fc.weight
    state = export_state_dict(model)
    assert torch.equal(state['shared'], state['fc.weight'])
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    with torch.no_grad():
        model.fc.weight.zero_()
    assert state['fc.weight'].any()


@pytest.mark.parametrize('change', [prune.random_unstructured, weight_norm, torch.nn.utils.weight_norm])
def test_weights_that_timm_does_not_know_are_not_saved(model, tmp_path, change):
    change(model.fc, 'weight', *([0.5] if change is prune.random_unstructured else []))
    with pytest.raises(UsageError, match=r"plain timm has no weight 'fc\..*permanent first"):
        save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_layers_that_were_fused_or_added_are_not_saved(model, tmp_path):
    fused = reparameterize_model(timm.create_model('repghostnet_050', num_classes=3))
    model.more = torch.nn.Linear(2, 2)
    for each, name in ((fused, 'blocks'), (model, 'more.weight')):
        with pytest.raises(
            UsageError, match=f"plain timm could not load the weights: '.*{name}.*' is .* in timm's model"
        ):
            save_pretrained(each, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_os_error(model, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(OSError, match='file'):
        save_pretrained(model, tmp_path / 'file')


def test_short_names_tell_models_apart(tmp_path):
    for run in ('a/run', 'b/run', 'b/other'):
        (tmp_path / run / 'model_best').mkdir(parents=True)
    runs = [f'{tmp_path}/{name}' for name in ('a/run', 'b/other/model_best/')]
    assert short_names(runs) == ['run', 'other']
    weights = [f'local-dir:{tmp_path}/{name}/model_best/' for name in ('a/run', 'b/other')]
    assert short_names(weights) == ['run', 'other']
    assert short_names([runs[0], f'{tmp_path}/b/run']) == ['run (1)', 'run (2)']
    assert short_names(['hf-hub:user/name@refs/pr/1', 'resnet18']) == ['name', 'resnet18']
