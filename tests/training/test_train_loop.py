"""The training loop against one written by hand, on the same batches.

In float64: in float32 three updates turn a difference in the last bit into one of 1e-4, when a unit changes sides.
"""

import json
import re

import pytest
import timm
import torch
from accelerate import Accelerator
from running import NARROW, SMALL, summary, train, training_state
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy
from timm.utils import ModelEmaV3, random_seed
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from timm_hnc import CamModel, hnc_loss
from timm_hnc.checkpoints.checkpoints import CheckpointFolder, Progress
from timm_hnc.commands.options.train_options import parse_train_options
from timm_hnc.data.loading.seeded_batches import seed_generators
from timm_hnc.errors import UsageError
from timm_hnc.training.setup.build import build_run


def options(images, *argv):
    # a schedule that is easy to write down
    schedule = ['--sched', 'step', '--decay-epochs', 1, '--decay-rate', 0.5, '--warmup-epochs', 0]
    precision = ['--model-dtype', 'float64']
    return ['--data-dir', images, *SMALL, *precision, '--lr', 0.05, *schedule, *argv]


def build(images, tmp_path, *argv):
    found, *_ = parse_train_options([str(word) for word in options(images, *argv)])
    folder = CheckpointFolder(tmp_path, 1, False, Progress(found.model.model))
    return build_run(found, Accelerator(cpu=True), folder)


class ByHand:
    """Plain PyTorch: model, SGD with momentum, batches of the run's own loader seeded as train.py seeds an epoch."""

    def __init__(self, images, tmp_path, *argv, seed=42):
        self.seed = seed
        self.loader = build(images, tmp_path, *argv).data.train_loader
        random_seed(seed, 0)
        self.model = timm.create_model('test_resnet', num_classes=3, **NARROW).double()
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{'params': vectors, 'weight_decay': 0.0}, {'params': matrices, 'weight_decay': 2e-5}]
        self.optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)

    def batches(self, epoch):
        random_seed(self.seed + 100_003 * (epoch + 1), 0)
        self.loader.batch_sampler.set_epoch(epoch)
        self.model.train()
        for group in self.optimizer.param_groups:
            group['lr'] = 0.05 * 0.5**epoch
        return ((input.double(), target) for input, target in self.loader)

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


def same_weights(model, weights):
    state = model.state_dict()
    assert state.keys() == weights.keys()
    return all(torch.allclose(state[name], weights[name], rtol=1e-9, atol=1e-12) for name in state)


def test_without_hnc_the_loss_curve_is_that_of_a_plain_loop(images, tmp_path):
    folder = train(*options(images, '--epochs', 3), '--output', tmp_path, '--experiment', 'run')
    plain = ByHand(images, tmp_path)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for row in summary(folder):
        losses, count = 0.0, 0
        for input, target in plain.batches(int(row['epoch'])):
            loss = criterion(plain.model(input), target)
            loss.backward()
            plain.step()
            losses, count = losses + loss.item() * len(input), count + len(input)
        assert count == 56
        assert row['train_loss'] == pytest.approx(losses / count, abs=1e-9)
    assert same_weights(plain.model, training_state(folder)['model'])


def test_the_hnc_loss_adds_itself_to_the_same_loop(images, tmp_path):
    argv = ['--hnc', 'kd', '--hnc-weight', 0.01, '--hnc-topk', 1, '--hnc-reduction', 'mean']
    folder = train(*options(images, '--epochs', 2, *argv), '--output', tmp_path, '--experiment', 'run')
    plain = ByHand(images, tmp_path)
    criterion = LabelSmoothingCrossEntropy(0.1)
    model = CamModel(plain.model)
    for row in summary(folder):
        sums = torch.zeros(2, dtype=torch.float64)
        for input, target in plain.batches(int(row['epoch'])):
            maps = model.class_maps(input)
            hnc = hnc_loss(maps, target, 'kd', topk=1, reduction='mean')
            loss = criterion(maps.logits, target)
            (loss + 0.01 * hnc).backward()
            plain.step()
            sums += torch.stack([loss, hnc]).detach() * 8 / 56
        assert (row['train_criterion'], row['train_hnc']) == pytest.approx(tuple(sums.tolist()), abs=1e-9)
    assert same_weights(plain.model, training_state(folder)['model'])


def test_hnc_joins_in_an_epoch(images, tmp_path):
    argv = ['--hnc', 'mse', '--hnc-weight', 'follow:0.2', '--hnc-topk', 1, '--model-ema']
    late = options(images, '--epochs', 2, *argv, '--checkpoint-hist', 2, '--output', tmp_path, '--experiment')
    folder = train(*late, 'late', '--hnc-start-epoch', 1)
    first, second = summary(folder)
    assert first['train_loss'] == first['train_criterion']
    assert (first['train_hnc'] > 0, first['train_hnc_weight']) == (True, 0)
    assert second['train_loss'] > second['train_criterion']
    assert second['train_hnc_weight'] > 0
    configs = [folder / 'checkpoints' / f'epoch-{epoch}' / 'model' / 'config.json' for epoch in (0, 1)]
    trained_with = [json.loads(path.read_text()).get('hnc', {}).get('variant') for path in configs]
    assert trained_with == [None, 'mse']
    with pytest.raises(UsageError, match='--hnc-start-epoch 2: the run ends after 2 epochs'):
        train(*late, 'never', '--hnc-start-epoch', 2)
    plain, _ = summary(train(*options(images, '--epochs', 2), '--output', tmp_path, '--experiment', 'plain'))
    assert first['train_criterion'] == pytest.approx(plain['train_loss'], abs=1e-9)


def test_accumulation_divides_the_last_window_by_its_real_length(images, tmp_path):
    # 7 batches in windows of 3, 3 and 1
    argv = ['--grad-accum-steps', 3, '--model-ema', '--model-ema-decay', 0.5]
    folder = train(*options(images, *argv), '--output', tmp_path, '--experiment', 'run')
    plain = ByHand(images, tmp_path)
    ema = ModelEmaV3(plain.model, decay=0.5)
    batches = list(plain.batches(0))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for update, window in enumerate((batches[:3], batches[3:6], batches[6:])):
        for input, target in window:
            (criterion(plain.model(input), target) / len(window)).backward()
        plain.step()
        ema.update(plain.model, step=update + 1)
    state = training_state(folder)
    assert same_weights(plain.model, state['model'])
    assert same_weights(ema.module, state['model_ema'])


@pytest.mark.parametrize('mode', ['norm', 'value', 'agc'])
def test_gradients_are_clipped_as_by_hand(images, tmp_path, mode):
    limit = {'norm': 0.5, 'value': 0.01, 'agc': 0.01}[mode]
    argv = ['--clip-grad', limit, '--clip-mode', mode]
    folder = train(*options(images, *argv), '--output', tmp_path, '--experiment', 'run')
    plain = ByHand(images, tmp_path)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    clipped = 0
    for input, target in plain.batches(0):
        criterion(plain.model(input), target).backward()
        before = [parameter.grad.clone() for parameter in plain.model.parameters()]
        if mode == 'norm':
            norm = torch.stack([grad.square().sum() for grad in before]).sum().sqrt()
            for parameter in plain.model.parameters():
                parameter.grad *= min(1.0, limit / (norm.item() + 1e-6))
        elif mode == 'value':
            for parameter in plain.model.parameters():
                parameter.grad.clamp_(-limit, limit)
        else:
            # AGC leaves the head out
            adaptive_clip_grad([p for n, p in plain.model.named_parameters() if not n.startswith('fc.')], limit)
        clipped += any(not torch.equal(a, p.grad) for a, p in zip(before, plain.model.parameters(), strict=True))
        plain.step()
    assert clipped > 3
    assert same_weights(plain.model, training_state(folder)['model'])


def test_mixup_without_the_prefetcher_is_timms_on_the_batch(images, tmp_path):
    argv = ['--mixup', 0.5, '--no-prefetcher', '--mixup-off-epoch', 1, '--epochs', 2]
    folder = train(*options(images, *argv), '--output', tmp_path, '--experiment', 'run')
    plain = ByHand(images, tmp_path, *argv)
    mixup = Mixup(mixup_alpha=0.5, label_smoothing=0.1, num_classes=3)
    for row in summary(folder):
        losses = 0.0
        for index, (input, target) in enumerate(plain.batches(int(row['epoch']))):
            seed_generators(plain.loader.batch_sampler.seed, int(row['epoch']), index, -2)
            mixup.mixup_enabled = row['epoch'] < 1
            input, target = mixup(input, target)
            loss = -(target * plain.model(input).log_softmax(1)).sum(1).mean()
            loss.backward()
            plain.step()
            losses += loss.item() * 8 / 56
        assert row['train_loss'] == pytest.approx(losses, abs=1e-9)


def test_layer_decay_and_weight_decay_reach_the_parameters_of_the_plain_model(images, tmp_path):
    run = build(images, tmp_path, '--layer-decay', 0.5, '--opt', 'adamw', '--hnc', 'mse', '--weight-decay', 0.1)
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    groups = run.optimizer.optimizer.param_groups
    found = {names[id(parameter)]: group for group in groups for parameter in group['params']}
    assert found.keys() == dict(run.model.named_parameters()).keys()
    scales = {name: group['lr_scale'] for name, group in found.items()}
    assert scales['fc.weight'] == 1
    assert scales['conv1.0.weight'] < scales['layer1.0.conv1.weight'] < scales['layer2.0.conv1.weight'] < 1
    no_decay = {name for name, group in found.items() if group['weight_decay'] == 0}
    assert no_decay == {name for name, parameter in run.model.named_parameters() if parameter.ndim <= 1}


def test_schedule_by_updates_moves_the_rate_every_update(images, tmp_path, caplog):
    argv = ['--sched', 'cosine', '--sched-on-updates', '--epochs', 4, '--warmup-epochs', 1, '--warmup-lr', 0]
    folder = train(*options(images, *argv), '--output', tmp_path, '--experiment', 'run')
    rows = summary(folder)
    # cosine over 4 epochs of 7 updates, at the end of each; linear warm-up over the first
    expected = [0.05 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 7 * (e + 1) / 28)).item()) for e in range(4)]
    assert [row['lr'] for row in rows] == pytest.approx(expected, abs=1e-6)
    logged = re.findall(r'Train: (\d) \[ *(\d)/7\].* lr (\S+) ', caplog.text)
    used = {(int(epoch), int(update)): float(lr) for epoch, update, lr in logged}
    assert used[0, 1] == 0, 'what the update took, not what the next one takes'
    assert used[0, 7] == pytest.approx(0.05 * 6 / 7, rel=1e-3)


def test_the_average_counts_every_update_from_the_start(images, tmp_path):
    argv = ['--model-ema', '--model-ema-warmup', '--model-ema-decay', 0.9]
    whole = train(*options(images, *argv, '--epochs', 2), '--output', tmp_path, '--experiment', 'run')
    plain = ByHand(images, tmp_path)
    ema = ModelEmaV3(plain.model, decay=0.9, use_warmup=True)
    update = 0
    for epoch in range(2):
        for input, target in plain.batches(epoch):
            nn.functional.cross_entropy(plain.model(input), target, label_smoothing=0.1).backward()
            plain.step()
            update += 1
            ema.update(plain.model, step=update)
    assert same_weights(ema.module, training_state(whole)['model_ema'])
