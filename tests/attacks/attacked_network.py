"""A network and images without a random number in them, so that stored attacks of another library stay true.

`python attacked_network.py torchattacks_reference.safetensors`, with torchattacks 3.5.1 installed, wrote the file.
"""

import sys

import torch
from safetensors.torch import save_file
from torch import nn

EPS, STEP, STEPS = 8 / 255, 2 / 255, 7


def waves(*shape: int, speed: float) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * speed).reshape(shape).float()


class Network(nn.Module):
    """Two convolutions and a linear layer on images of 3 x 8 x 8."""

    pretrained_cfg = {'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.25, 0.3)}  # noqa: RUF012  # as timm's models have it

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 5)
        )
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(waves(*parameter.shape, speed=1.7 + 0.31 * number) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def images() -> torch.Tensor:
    return (waves(6, 3, 8, 8, speed=0.913) * 0.6 + 0.5).clamp(0, 1)


LABELS = torch.tensor([0, 3, 1, 4, 2, 2])

if __name__ == '__main__':
    import torchattacks

    from timm_hnc.attacks.attacks import normalized

    classifier = normalized(Network()).eval()
    pgd = torchattacks.PGD(classifier, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)
    save_file(
        {'fgsm': torchattacks.FGSM(classifier, eps=EPS)(images(), LABELS), 'pgd': pgd(images(), LABELS)}, sys.argv[1]
    )
