"""The paper's own figures: Tables 1 to 7, by row and column. None where the paper has a dash.

Fig. 4 has no readable figures.
"""

Figures = dict[tuple[str, str], tuple[float | None, ...]]

# top-1 and top-5 accuracy on CIFAR-100 in %, ResNet-56 and ResNet-110; Anchor loss: from its own paper
_TABLE1 = {
    'ce': (72.40, 92.68, 73.79, 93.11),
    'center': (72.72, 93.06, 74.27, 93.20),
    'lgm': (73.08, 93.10, 74.34, 93.06),
    'focal': (73.09, 93.07, 74.34, 93.34),
    'cb-focal': (73.09, 93.07, 74.34, 93.34),
    'a-softmax': (72.20, 91.28, 72.72, 90.41),
    'lmc': (71.52, 91.64, 73.15, 91.88),
    'aam': (71.41, 91.66, 73.72, 91.86),
    'anchor': (None, None, 74.38, 92.45),
    'hnc-mse': (73.35, 93.11, 75.00, 93.58),
    'hnc-kd': (73.47, 93.29, 74.76, 93.65),
}
# top-1 and top-5 error on ImageNet in %, ResNet-101 and ResNet-152; LGM: from its own paper
_TABLE2 = {
    'ce': (23.2, 6.7, 22.9, 6.6),
    'lgm': (22.7, 7.1, None, None),
    'hnc-mse': (22.3, 6.4, 21.9, 6.1),
    'hnc-kd': (22.1, 6.4, 21.8, 6.0),
}
# top-1 accuracy on CUB-200-2011 in %, ResNet-50
_TABLE3 = {'ce': 86.0, 'center': 86.5, 'focal': 85.8, 'hnc-mse': 87.1, 'hnc-kd': 86.9}
# mAP, F1-C (mean of the classes' F1), P-C, R-C, F1-O, P-O and R-O on MS-COCO in %, ResNet-101; the first and the fourth
# row: from the paper of attention consistency
_TABLE4 = {
    'weighted-sigmoid': (74.9, 69.7, 70.1, 69.7, 73.7, 73.6, 73.7),
    'hnc-mse': (77.8, 72.3, 78.9, 67.4, 76.5, 81.9, 71.9),
    'hnc-kd': (77.6, 72.3, 75.8, 69.7, 76.1, 78.2, 74.1),
    'attention-consistency': (77.5, 72.2, 77.4, 68.3, 76.3, 79.8, 73.1),
    'ac+hnc-mse': (78.5, 72.8, 79.6, 67.9, 76.9, 82.3, 72.1),
    'ac+hnc-kd': (78.2, 72.9, 76.8, 70.0, 76.6, 78.6, 74.7),
}
# top-1 accuracy on CIFAR-100 in %, ResNet-110, under FGSM, by eps
ATTACK_EPS = ('0.05', '0.1', '0.2', '0.3')
_TABLE5 = {
    'ce': (14.55, 9.89, 6.15, 3.79),
    'center': (14.76, 10.42, 7.17, 5.54),
    'hnc-mse': (23.92, 17.20, 11.01, 6.90),
    'hnc-kd': (29.80, 21.80, 12.96, 7.06),
}
# top-1 accuracy on CIFAR-100 in %, ResNet-110, last epoch, by noise of the training labels
NOISES = (
    *('symmetric:0.2', 'symmetric:0.4', 'symmetric:0.6', 'symmetric:0.8'),
    *('asymmetric:0.1', 'asymmetric:0.2', 'asymmetric:0.3', 'asymmetric:0.4'),
)
_TABLE6 = {
    'ce': (51.98, 38.76, 22.48, 9.16, 63.10, 56.60, 49.33, 40.89),
    'hnc-mse': (58.98, 48.03, 32.86, 14.73, 67.18, 62.91, 56.12, 46.51),
    'hnc-kd': (56.59, 44.86, 29.15, 12.20, 65.33, 59.72, 51.98, 43.04),
}
# top-1 accuracy on CIFAR-100 in %, CE and HNC (mse)
_TABLE7 = {
    'cifar_resnet110': (73.79, 75.00),
    'cifar_densenet_bc_100_k12': (77.32, 78.78),
    'cifar_resnext29_8x64d': (81.77, 82.32),
    'cifar_resnext29_16x64d': (81.98, 82.81),
}


def _pairs(table: dict[str, tuple[float | None, ...]], first: str, second: str) -> Figures:
    figures: Figures = {}
    for row, values in table.items():
        figures |= {(row, first): values[:2], (row, second): values[2:]}
    return figures


def _singles(table: dict[str, tuple[float, ...]], columns: tuple[str, ...]) -> Figures:
    return {
        (row, column): (value,) for row, values in table.items() for column, value in zip(columns, values, strict=True)
    }


PAPER: dict[str, Figures] = {
    'table1': _pairs(_TABLE1, 'cifar_resnet56', 'cifar_resnet110'),
    'table2': _pairs(_TABLE2, 'resnet101', 'resnet152'),
    'table3': {(row, 'resnet50'): (value,) for row, value in _TABLE3.items()},
    'table4': {(row, 'resnet101'): values for row, values in _TABLE4.items()},
    'table5': _singles(_TABLE5, ATTACK_EPS),
    'table6': _singles(_TABLE6, NOISES),
    'table7': _singles(_TABLE7, ('ce', 'hnc-mse')),
}
