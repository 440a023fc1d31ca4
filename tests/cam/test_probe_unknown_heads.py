"""Heads that no timm model has: what each computes decides whether it has maps, and of which kind."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from unknown_models import (
    IMAGES,
    Tiny,
    accepted,
    assert_exact,
    assert_maps_move_with_the_patches,
)

from timm_hnc import CamModel
from timm_hnc.cam.heads.probe import UnsupportedHead

MANY = [shape for shape in IMAGES if shape[0] > 1]  # a batch norm does not train on one image
TRAINING = pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])


class Custom(Tiny):
    """Its head is one of the functions below; with pre_logits=True it looks like an average pool all the same."""

    head = None

    def __init__(self):
        super().__init__()
        self.fc2 = self.classifier()
        self.hidden = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 16)
        self.long = nn.Linear(64, 5)
        self.three = nn.Linear(3, 5)
        self.flat = nn.Linear(192, 5)
        self.twin = nn.Linear(16, 5)
        self.mixing = nn.Linear(24, 24)
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(5))
        self.query = nn.Parameter(torch.randn(8, 1))
        self.attention = nn.Conv2d(8, 1, 1)
        self.shifted_kernel = nn.Conv2d(8, 8, (4, 6), stride=7, padding=(2, 3))
        self.local = nn.Conv2d(8, 8, 3, padding=1)
        self.along_channels = nn.Conv1d(1, 1, 3, padding=1)
        self.layer_norm = nn.LayerNorm(8)
        self.batch_norm = nn.BatchNorm1d(8)
        self.group_norm = nn.GroupNorm(2, 8)
        self.multi_head = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        with torch.no_grad():
            self.identity = nn.Linear(8, 8)
            self.identity.weight.copy_(torch.eye(8))
            self.identity.bias.zero_()
            self.other_weight = nn.Parameter(self.fc.weight.clone())

    def forward_head(self, x, pre_logits: bool = False):
        return self.pool(x) if pre_logits else self.head(x)


def tokens_of(x):
    return x.flatten(2).transpose(1, 2)


def in_place(x, hidden):
    x += hidden
    x -= 0.1
    x.relu_().mul_(0.5).div_(3)
    return nn.functional.silu(x, inplace=True)


def relu_through_a_view(x):
    x.view(-1).relu_()
    return x


def mean_and_squares(m, x):
    """The features themselves are changed behind the pool."""
    mean = x.mean(1)
    x.sub_(mean[:, None])
    return m.fc(mean.tanh() + x.square().mean(1))


def normed(m, x):
    return m.layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def attention_pool(m, x):
    weights = (tokens_of(x) @ m.query).softmax(1)
    return m.fc((weights.transpose(1, 2) @ tokens_of(x))[:, 0])


def largest_only(pooled):
    return pooled * (pooled >= pooled.topk(4).values[:, -1:])


# by kind: what can be written as a mean over positions once all that is not linear is detached
EXACT = {
    'A': {
        'sum pool': lambda m, x: m.fc(x.sum((2, 3))),
        'sum by area': lambda m, x: m.fc(x.sum((2, 3)) / (x.shape[2] * x.shape[3])),
        'scaled pool': lambda m, x: m.fc(m.pool(x) * 1.5),
        'generalized mean without a clamp': lambda m, x: m.fc(m.pool(x.relu().pow(3)).pow(1 / 3)),
        'activation before the pool': lambda m, x: m.fc(m.pool(x.relu())),
        'in-place before the pool': lambda m, x: m.fc(m.pool(x.relu_().add_(1.0))),
        'dropout before the pool, and a sum': lambda m, x: m.fc(functional.dropout(x, 0.5, m.training).sum((2, 3))),
        'doubled logits': lambda m, x: m.fc(m.pool(x)) * 2.0,
        'temperature': lambda m, x: m.fc(m.pool(x)) * m.scale.exp(),
        'divided by a temperature': lambda m, x: m.fc(m.pool(x)) / (m.scale + 1.0),
        'another bias': lambda m, x: functional.linear(m.pool(x), m.fc.weight, m.shift),
        'arguments by name': lambda m, x: functional.linear(
            bias=m.shift, weight=m.fc.weight, input=x.mean(axis=(2, 3))
        ),
        'a convolution by name': lambda m, x: functional.conv2d(
            x.mean((-2, -1), True), stride=1, weight=m.fc.weight[..., None, None]
        ).flatten(1),
        'two added': lambda m, x: m.fc(m.pool(x)) + m.fc2(m.pool(x)),
        'two stacked': lambda m, x: torch.stack([m.fc(m.pool(x)), m.fc2(m.pool(x))]).sum(0),
        'gate of channels, by the maximum': lambda m, x: m.fc(m.pool(x) * x.amax((2, 3)).sigmoid()),
        'the largest channels': lambda m, x: m.fc(largest_only(m.pool(x))),
        'dropout always': lambda m, x: m.fc(functional.dropout(m.pool(x), 0.5, True)),
    },
    'B': {'batch norm': lambda m, x: m.fc(m.batch_norm(m.pool(x)))},
    'C': {
        'layer norm of a sum': lambda m, x: m.fc(m.layer_norm(x.sum((2, 3)))),
        'group norm': lambda m, x: m.fc(m.group_norm(m.pool(x))),
        'unit length by hand': lambda m, x: m.fc(m.pool(x) / m.pool(x).norm(dim=1, keepdim=True)),
    },
    'D': {
        'two linear layers': lambda m, x: m.fc(m.hidden(m.pool(x))),
        'activation behind the pool': lambda m, x: m.fc(m.pool(x).tanh()),
        'gate of channels': lambda m, x: m.fc(m.pool(x) * m.hidden(m.pool(x)).sigmoid()),
        'gate before the pool': lambda m, x: m.fc(m.pool(x * m.hidden(m.pool(x)).sigmoid()[:, :, None, None])),
        'gate along the channels': lambda m, x: m.fc(m.pool(x) * m.along_channels(m.pool(x)[:, None]).sigmoid()[:, 0]),
        'in-place': lambda m, x: m.fc(in_place(m.pool(x), m.hidden(m.pool(x)))),
        'two activations': lambda m, x: m.fc(m.pool(x).relu()) + m.fc2(m.pool(x).tanh()),
        'shifted logits': lambda m, x: m.fc(m.pool(x)) + 1.0,
        'a temperature a class': lambda m, x: m.fc(m.pool(x)) * m.shift.exp(),
        'sum of a list': lambda m, x: sum([m.fc(m.pool(x)), m.fc2(m.pool(x))]),
        'product of logits': lambda m, x: m.fc(m.pool(x)) * m.fc2(m.pool(x)),
        'centred logits': lambda m, x: m.fc(m.pool(x)) - m.fc(m.pool(x)).mean(1, keepdim=True),
        'classifier by matmul': lambda m, x: m.pool(x).tanh() @ m.fc.weight.t() + m.fc.bias,
        'products of channels': lambda m, x: m.long((m.pool(x)[:, :, None] * m.pool(x)[:, None]).flatten(1)),
        'cosine': lambda m, x: functional.linear(functional.normalize(m.pool(x)), functional.normalize(m.fc.weight)),
        'dropout behind an activation': lambda m, x: m.fc(
            functional.dropout(m.hidden(m.pool(x)).relu(), 0.5, m.training)
        ),
    },
    'F': {
        'attention pool': attention_pool,
        'products of channels at every position': lambda m, x: m.long((x.flatten(2) @ tokens_of(x)).flatten(1)),
    },
}
# exact, but every position has its own weights
OF_PLACES = {
    'E': {
        'attention of a convolution': lambda m, x: m.fc(
            (x * m.local(x) * m.attention(x).flatten(2).softmax(-1).unflatten(2, x.shape[2:])).sum((2, 3))
        ),
        'convolution': lambda m, x: m.fc(m.pool(m.local(x).relu())),
    },
}
# the same, of images of one size, or with scores of 0
OF_ONE_SIZE = {
    'activation of the logits': lambda m, x: m.fc(m.pool(x)).relu(),
    'one long vector': lambda m, x: m.flat(x.flatten(1)),
    'four cells in one vector': lambda m, x: m.flat(functional.interpolate(x, (4, 6)).flatten(1)),
    'mean over channels, kept': lambda m, x: m.mixing(x.mean(1, keepdim=True).flatten(1))[:, :5],
}
REFUSED = {
    'without the mean of the batch': lambda m, x: m.fc(m.pool(x) - m.pool(x).mean(-2, keepdim=True)),
    'maximum': lambda m, x: m.fc(x.amax((2, 3))),
    'maximum added': lambda m, x: m.fc(m.pool(x) + x.amax((2, 3))),
    'maximum multiplied': lambda m, x: m.fc(m.pool(x) * x.amax((2, 3))),
    'generalized mean': lambda m, x: m.fc(m.pool(x.clamp(min=1e-6).pow(3)).pow(1 / 3)),
    'half of the image': lambda m, x: m.fc(x[:, :, :2].mean((2, 3))),
    'every second column': lambda m, x: m.fc(x[..., ::2].mean((2, 3))),
    'transposed positions': lambda m, x: m.fc(x.transpose(2, 3).flatten(2).mean(2).tanh()),
    'positions in another order': lambda m, x: m.fc(x.flatten(2)[:, :, torch.arange(23, -1, -1)].mean(2).tanh()),
    'positions mirrored': lambda m, x: m.fc(m.pool(x + x.flip(3)).tanh()),
    'positions rolled': lambda m, x: m.fc(m.pool(x.roll(1, 3)).tanh()),
    'mean over channels': lambda m, x: m.mixing(x.mean(1).flatten(1))[:, :5],
    'one long vector of tokens': lambda m, x: m.flat(tokens_of(x).flatten(1)),
    'softmax over classes': lambda m, x: m.fc(m.pool(x)).softmax(-1),
    'log-softmax over classes': lambda m, x: m.fc(m.pool(x)).log_softmax(-1),
    'larger of two': lambda m, x: torch.maximum(m.fc(m.pool(x)), m.fc2(m.pool(x))),
    'larger of two stacked': lambda m, x: torch.stack([m.fc(m.pool(x)), m.fc2(m.pool(x))]).amax(0),
    'maxout': lambda m, x: m.fc(m.twice(m.pool(x)).unflatten(1, (8, 2)).max(2).values),
    'where': lambda m, x: m.fc(torch.where(m.pool(x) > 0, m.pool(x), 0.1)),
    'clamp': lambda m, x: m.fc(m.pool(x).clamp(-0.1, 0.1)),
    'absolute value': lambda m, x: m.fc(m.pool(x).abs()),
    'largest values': lambda m, x: m.three(m.pool(x).topk(3).values),
    'sorted values': lambda m, x: m.fc(m.pool(x).sort(1).values),
    'recurrent network': lambda m, x: m.fc(m.recurrent(tokens_of(x))[0].mean(1)),
    'a tuple': lambda m, x: (m.fc(m.pool(x)), m.fc2(m.pool(x))),
    'a dictionary': lambda m, x: {'logits': m.fc(m.pool(x))},
}
# these have maps, but are not known: refused all the same, never accepted with other maps
NOT_KNOWN = {
    'attention by einsum': lambda m, x: m.fc(
        torch.einsum('blo,bcl->bco', (tokens_of(x) @ m.query).softmax(1), x.flatten(2))[..., 0]
    ),
    'attention with several heads': lambda m, x: m.fc(
        m.multi_head(tokens_of(x).mean(1, keepdim=True), tokens_of(x), tokens_of(x))[0][:, 0]
    ),
    'mean of means': lambda m, x: m.fc(x.mean(-1).mean(-1).tanh()),
    'softplus': lambda m, x: m.fc(functional.softplus(m.pool(x))),
    'number taken out': lambda m, x: m.fc(m.pool(x)) * float(x.mean()),
}


def model_of(function, **attributes):
    """A model class with this head."""
    return type('Custom', (Custom,), {'head': function, **attributes})


def cases(*groups):
    pairs = [(kind, *item) for group in groups for kind, heads in group.items() for item in heads.items()]
    return [pytest.param(kind, function, id=name) for kind, name, function in pairs]


@pytest.mark.parametrize(('kind', 'function'), cases(EXACT, OF_PLACES))
def test_means_over_positions_are_accepted(kind, function):
    cam_model = accepted(model_of(function))
    assert cam_model.head.kind == kind
    assert cam_model.kind.trainable
    for training in (False, True):
        assert_exact(cam_model, training, MANY if kind == 'B' else IMAGES)
    if kind not in OF_PLACES:
        assert_maps_move_with_the_patches(cam_model)


@pytest.mark.parametrize('function', OF_ONE_SIZE.values(), ids=OF_ONE_SIZE)
@TRAINING
def test_vectors_of_all_positions_are_accepted(function, training):
    assert_exact(accepted(model_of(function)), training, IMAGES[:1])


@pytest.mark.parametrize('function', [*REFUSED.values(), *NOT_KNOWN.values()], ids=[*REFUSED, *NOT_KNOWN])
def test_all_else_is_refused(function):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedHead, match=r"^no exact class maps for 'tiny': .*Way out: ") as error:
        CamModel(model_of(function)())
    assert '\n' not in str(error.value)


# --- heads that look like others ---

ONLY_IN_TRAINING = {
    'dropout before the pool': lambda m, x: m.fc(m.pool(functional.dropout(x, 0.5, m.training))),
    'dropout of maps': lambda m, x: m.fc(m.pool(functional.dropout2d(x, 0.5, m.training))),
    'alpha dropout': lambda m, x: m.fc(functional.alpha_dropout(m.pool(x), 0.5, m.training)),
    'dropout of logits': lambda m, x: functional.dropout(m.fc(m.pool(x)), 0.5, m.training),
    'noise': lambda m, x: m.fc(m.pool(x) + torch.randn_like(m.pool(x)) if m.training else m.pool(x)),
    'activation': lambda m, x: m.fc(m.pool(x).relu() if m.training else m.pool(x)),
}
INITIALLY_NOTHING = {
    'identity': lambda m, x: m.fc(m.identity(m.pool(x))),
    'copied weight': lambda m, x: functional.linear(m.pool(x), m.other_weight, m.fc.bias),
    'unit scale': lambda m, x: m.fc(m.pool(x)) * m.scale,
    'zero shift': lambda m, x: m.fc(m.pool(x)) + m.shift,
}
# the mean of such maps is the logit, with a part of it spread evenly as if it came from nowhere
EVENLY_SPREAD = {
    'maximum by topk': lambda m, x: m.fc(m.pool(x) + x.flatten(2).topk(1).values[..., 0]),
    'detached maximum': lambda m, x: m.fc(m.pool(x) + x.amax((2, 3)).detach()),
    'standard deviation': lambda m, x: m.fc(m.pool(x) + x.std((2, 3))),
    'mean and standard deviation': lambda m, x: m.twin(torch.cat([m.pool(x), x.std((2, 3))], 1)),
    'log-mean-exp': lambda m, x: m.fc(m.pool(x) + m.pool(x.exp()).log()),
    'softmax of channels': lambda m, x: m.fc(m.pool(x) + m.pool(x).softmax(-1)),
}
MISPLACED = {
    'cropped by a negative pad': lambda m, x: m.fc(m.pool(functional.pad(x, (0, -2))).tanh()),
    'padded on one side': lambda m, x: m.fc(m.pool(functional.pad(x, (20, 0))).tanh()),
    'mixed by a linear layer over positions': lambda m, x: m.fc(m.mixing(x.flatten(2)).mean(2).tanh()),
}
CHANGED_BEHIND_ITS_BACK = {
    'through a view': (lambda m, x: m.fc(relu_through_a_view(m.pool(x))), 'NCHW'),
    'features behind the pool': (mean_and_squares, 'NLC'),
    'a kernel that sticks out': (lambda m, x: m.fc(m.shifted_kernel(x).flatten(1)), 'NCHW'),
}
NORM_IN_FRONT = {
    'then a convolution': lambda m, x: m.fc(m.pool(m.local(normed(m, x))).tanh()),
    'added': lambda m, x: m.fc(m.pool(x + normed(m, x)).tanh()),
}


def assert_refused(model):
    with pytest.raises(UnsupportedHead):
        CamModel(model)


@TRAINING
@pytest.mark.parametrize('name', ONLY_IN_TRAINING)
def test_heads_that_work_otherwise_in_training(name, training):
    model = model_of(ONLY_IN_TRAINING[name])
    if name in ('dropout of maps', 'alpha dropout', 'noise'):
        assert_refused(model())
    else:
        assert_exact(accepted(model), training)


@pytest.mark.parametrize('name', INITIALLY_NOTHING)
def test_layers_that_do_nothing_yet(name):
    """Accepted fresh, so exact after training."""
    cam_model = accepted(model_of(INITIALLY_NOTHING[name]))
    assert cam_model.kind.name[0] == ('D' if name in ('identity', 'zero shift') else 'A')
    assert_exact(cam_model, training=False)


def test_a_classifier_of_zeros_hides_nothing():
    class Zeros(Custom):
        def __init__(self):
            super().__init__()
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)

        def head(self, x):
            return self.fc(self.hidden(self.pool(x)))

    assert_exact(accepted(Zeros), training=False)


@pytest.mark.parametrize('function', [*EVENLY_SPREAD.values(), *MISPLACED.values()], ids=[*EVENLY_SPREAD, *MISPLACED])
def test_contents_without_a_place_and_positions_that_lie_elsewhere_are_refused(function):
    with pytest.raises(UnsupportedHead):
        CamModel(model_of(function)())


@pytest.mark.parametrize(('function', 'layout'), CHANGED_BEHIND_ITS_BACK.values(), ids=CHANGED_BEHIND_ITS_BACK)
def test_values_that_do_not_fit_are_refused(function, layout):
    with pytest.raises(UnsupportedHead, match='not the means of its maps'):
        CamModel(model_of(function, layout=layout)())


@pytest.mark.parametrize('shape', [(2, 4, 24), (2, 16, 4)], ids=['1 x 6', '4 x 1'])
@pytest.mark.parametrize('function', NORM_IN_FRONT.values(), ids=NORM_IN_FRONT)
def test_a_norm_of_channels_in_front_of_the_pool_on_narrow_images(function, shape):
    assert_exact(accepted(model_of(function)), False, [shape])


@pytest.mark.parametrize('function', NORM_IN_FRONT.values(), ids=NORM_IN_FRONT)
@TRAINING
def test_a_norm_of_channels_in_front_of_the_pool(function, training):
    assert_exact(accepted(model_of(function)), training, [(3, 16, 24), (1, 16, 24), (2, 24, 16)])


@TRAINING
def test_images_of_one_cell(training):
    function = EXACT['D']['gate of channels']
    assert_exact(accepted(model_of(function)), training, [(2, 4, 4), (1, 4, 4)])


@pytest.mark.parametrize('function', [EXACT['A']['temperature'], EXACT['D']['gate of channels']], ids=['A', 'D'])
def test_a_forward_pass_that_does_more_than_its_head(function):
    assert_refused(model_of(function, forward=lambda m, x: 2 * m.forward_head(m.forward_features(x)))())


def test_a_head_that_draws_random_numbers_leaves_the_random_state():
    model = model_of(EXACT['A']['dropout always'])()
    random_state = torch.get_rng_state()
    CamModel(model)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_mean_over_images_is_refused():
    with pytest.raises(UnsupportedHead, match=r'mean\(\) over images'):
        CamModel(model_of(lambda m, x: m.fc(m.pool(x) - m.pool(x).mean(0)))())


@TRAINING
def test_a_window_as_large_as_the_map(training):
    """nn.AvgPool2d as the pool is exact on images of its size; a maximum is refused."""
    cam_model = accepted(model_of(lambda m, x: m.fc(functional.avg_pool2d(x, (4, 6)).flatten(1).tanh())))
    assert_exact(cam_model, training, [(2, 16, 24)])
    with pytest.raises(UnsupportedHead, match=r'max_pool2d\(\) to a single cell'):
        CamModel(model_of(lambda m, x: m.fc(functional.max_pool2d(x, (4, 6)).flatten(1).tanh()))())
