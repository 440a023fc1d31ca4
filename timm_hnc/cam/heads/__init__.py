"""The kinds of heads, and how one is recognised and detached.

To detach a function is to take its scales, gates and statistics at the values that they have in the model's own forward
pass, as constants without a gradient; what is left is affine in the positions. Conservative propagation detaches layer
norms and attention weights in the same way (Ali et al., ICML 2022; AttnLRP, Achtibat et al., ICML 2024).
"""
